"""Weights that mlx-lm keeps as they are stored stay so, whatever precision is asked for."""

from __future__ import annotations

from pathlib import Path

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from architecture_files import write_architecture
from mlx.utils import tree_flatten

from mlx_redrafter.conversion import convert
from mlx_redrafter.target.casting import cast_weights, set_precision
from mlx_redrafter.text.loading import load

# Of those that say so: biases of routers and decays, in the model itself or inside of it.
SOME = ["deepseek_v3", "kimi_k3", "kimi_linear", "nemotron_h", "qwen3_5", "step3p5"]


def kinds(model: nn.Module, *, kept: bool) -> set[mx.Dtype]:
    """Precisions of the weights that the model's predicate keeps, or of the others."""
    weights = tree_flatten(model.parameters())
    return {value.dtype for name, value in weights if model.cast_predicate(name) != kept}


@pytest.mark.parametrize("name", SOME)
def test_what_a_model_names_is_not_cast(name: str) -> None:
    model = architectures.build(name)
    cast_weights(model, mx.bfloat16)
    assert kinds(model, kept=True) == {mx.float32}
    assert kinds(model, kept=False) == {mx.bfloat16}


def test_nothing_is_kept_narrow_where_all_is_to_be_float32() -> None:
    model = architectures.build("nemotron_h")
    model.set_dtype(mx.bfloat16)
    set_precision(model, mx.float32)
    assert kinds(model, kept=True) == kinds(model, kept=False) == {mx.float32}


@pytest.mark.parametrize("name", ["deepseek_v3", "nemotron_h"])
def test_loading_keeps_what_converting_keeps(name: str, tmp_path: Path) -> None:
    source, out = write_architecture(tmp_path / "source", name), tmp_path / "out"
    model, _ = load(source, dtype=mx.bfloat16, lazy=True, plan=False)
    assert kinds(model.target.model, kept=True) == {mx.float32}
    assert kinds(model.target.model, kept=False) == {mx.bfloat16}
    convert(hf_path=source, mlx_path=out, dtype="bfloat16")
    stored = mx.load(str(out / "model.safetensors"))
    loaded = dict(tree_flatten(model.target.model.parameters()))
    assert {key: value.dtype for key, value in stored.items()} == {
        key: value.dtype for key, value in loaded.items()
    }
