"""Tiny random models of mlx-lm's architectures as directories, with a tokenizer and a drafter."""

from __future__ import annotations

import json
from pathlib import Path

import architectures
import bundles
import mlx.core as mx
from common_config import COMMON, HIDDEN
from mlx.utils import tree_flatten


def write_architecture(directory: Path, name: str, *, drafter: bool = False) -> Path:
    """Write a model of one of ``architectures.CONFIGS`` that has no text_config; returns its path.

    Args:
        directory: Where to; made if need be.
        name: Which.
        drafter: Whether it gets a random drafter too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = bundles.make_tokenizer(directory)
    model = architectures.build(name, vocab_size=vocab_size)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    own = {"model_type": name.split(":")[0], "vocab_size": vocab_size, "eos_token_id": 0}
    config = {**COMMON, **architectures.CONFIGS[name], **own}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    if drafter:
        bundles.write_drafter(directory, HIDDEN, vocab_size)
    return directory
