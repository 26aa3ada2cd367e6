"""GGUF files of tests converted, and what the converted models say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf, write_model
from mlx_redrafter.text.places import silent

IDS = mx.array([[5, 260, 17, 3, 99, 42, 180, 261, 7, 33, 250, 4]])


def converted(file: Path, **options: Any) -> Path:
    out = file.parent / f"{file.stem}-out"
    out.mkdir()
    write_model(read_gguf(file), out, silent, **options)
    return out


def logits(directory: Path) -> np.ndarray:
    return np.array(mlx_lm.load(str(directory))[0](IDS).astype(mx.float32))


def configured(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


def refusal(file: Path) -> str:
    """The sentence that a file gets; it must not be anything but a sentence."""
    out = file.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(RedrafterError) as caught:
        write_model(read_gguf(file), out, silent)
    text = str(caught.value)
    assert file.name in text
    assert "\n" not in text
    return text
