"""Hooks that did not attach are noticed when a model is loaded."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.architectures import ROTARY, TREES
from mlx_redrafter.target.positions import has_no_rotary
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree


@pytest.mark.parametrize("name", sorted(architectures.CONFIGS))
def test_every_architecture_has_the_hooks_that_it_needs(name: str) -> None:
    try:
        target = Target(architectures.build(name))
    except RuntimeError as error:
        pytest.skip(f"cannot be made here: {error}")
    if target.architecture in TREES:
        assert target.refusal is None


def renamed(module: nn.Module, cls: str) -> None:
    """Give a module's class another name, as a later mlx-lm might."""
    module.__class__ = type(cls, (type(module),), {"__module__": type(module).__module__})


def test_renamed_rotary_modules_are_refused_by_name_and_release() -> None:
    model = models.build("llama")
    for layer in model.model.layers:
        renamed(layer.self_attn.rope, "Spin")
    target = Target(model)
    assert target.verifies == "nothing"
    with pytest.raises(RedrafterError, match="rotary positions") as caught:
        SpeculativeModel(target, models.build_drafter())
    assert mlx_lm.__version__ in str(caught.value)
    assert "llama" in str(caught.value)


def test_a_renamed_function_is_refused() -> None:
    """nanochat turns by a function of its module, which is replaced by name."""
    model = architectures.build("nanochat")
    module = sys.modules[type(model).__module__]
    for layer in model.transformer.h:
        attention = layer.attn
        base = type(attention).__call__
        spin = {**base.__globals__, "spin": module.apply_rotary_emb}
        names = tuple("spin" if n == "apply_rotary_emb" else n for n in base.__code__.co_names)
        call = type(base)(base.__code__.replace(co_names=names), spin)
        attention.__class__ = type("Attention", (type(attention),), {"__call__": call})
    target = Target(model)
    assert target.refusal is not None
    assert "rotary positions" in target.refusal


def test_a_renamed_state_is_refused() -> None:
    """A recurrent module whose cache goes by another name is not seen when it is called."""
    model = architectures.build("mamba")
    for layer in model.backbone.layers:
        base = type(layer.mixer).__call__
        layer.mixer.__class__ = type(
            "Mixer", (type(layer.mixer),), {"__call__": lambda s, x, state, b=base: b(s, x, state)}
        )
        outer = type(layer).__call__
        layer.__class__ = type(
            "Block", (type(layer),), {"__call__": lambda s, x, state, b=outer: b(s, x, state)}
        )
    target = Target(model)
    assert target.refusal is not None
    assert "recurrent state" in target.refusal


def test_nodes_beyond_a_table_of_positions_read_its_last_row() -> None:
    model = architectures.build("gpt2")
    target = Target(model)
    assert target.max_positions is not None
    rows = target.max_positions
    cache = target.make_cache()
    list(target.fill([i % 50 for i in range(rows - 2)], cache))
    # The root and one node stand in the table, the two behind them do not.
    tree = DraftTree.from_parents([1, 2, 3, 4], [-1, 0, 1, 2])
    logits, _ = target.verify(tree, cache)
    assert mx.all(mx.isfinite(logits)).item()
    short, _ = target.verify(tree.first(1), cache)
    assert mx.allclose(logits[:2], short, atol=1e-5).item()
    again, _ = target.verify(tree, cache)
    assert mx.array_equal(logits, again)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_hooked_model_is_not_copied(name: str, copied: Any) -> None:
    model = models.build(name) if name == "llama" else models.mamba()
    target = Target(model)
    for one in (model, target, SpeculativeModel(target)):
        with pytest.raises(RedrafterError, match="neither copied nor pickled"):
            copied(one)


NOPE = [name for name in architectures.CONFIGS if name.endswith(":nope")]


@pytest.mark.parametrize("name", NOPE)
def test_a_configuration_may_leave_positions_out(name: str) -> None:
    target = Target(architectures.build(name))
    hooked = [getattr(module, "_redrafter_hooks", ()) for module in target.model.modules()]
    assert not any(ROTARY in hooks for hooks in hooked)
    assert (target.verifies, target.refusal) == ("tree", None)


@pytest.mark.parametrize("name", [name.split(":")[0] for name in NOPE])
def test_what_may_be_left_out_is_refused_where_it_is_only_renamed(name: str) -> None:
    model = architectures.build(name)
    turning = [m for m in model.modules() if isinstance(getattr(m, "rope", None), nn.RoPE)]
    assert turning
    for module in turning:
        renamed(module.rope, "Spin")
    refusal = Target(model).refusal
    assert refusal is not None
    assert "rotary positions" in refusal


def test_only_a_model_that_says_so_has_no_positions() -> None:
    model = architectures.build("granitemoehybrid:nope")
    assert has_no_rotary(model, attends=True)
    for module in model.modules():
        vars(module).pop("rope", None)  # as where it goes by another name
    assert not has_no_rotary(model, attends=True)
    assert not has_no_rotary(models.build("llama"), attends=False)
