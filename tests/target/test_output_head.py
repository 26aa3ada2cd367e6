"""The output head and the hidden state are found by what a forward does, not by names."""

from __future__ import annotations

import architectures
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import models
from mlx_redrafter.drafting.shared_head import output_rows
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

PROMPT = models.prompt_of(12)


def last_row(target: Target) -> tuple[mx.array, mx.array]:
    cache = target.make_cache()
    list(target.fill(PROMPT, cache))
    return target.verify(DraftTree.root_only(mx.array([5])), cache)


@pytest.mark.parametrize("name", sorted(architectures.CONFIGS))
def test_rows_times_the_hidden_state_are_the_logits(name: str) -> None:
    """Whatever a model does behind its rows (scales, soft caps), the order stays."""
    try:
        target = Target(architectures.build(name))
    except RuntimeError as error:
        pytest.skip(f"cannot be made here: {error}")
    logits, hidden = last_row(target)
    rows = output_rows(target)
    assert rows is not None
    assert rows.shape == (target.vocab_size, target.hidden_size)
    assert target.output_head is not None
    mine = np.array(target.output_head.logits(hidden).astype(mx.float32))[0]
    theirs = np.array(logits.astype(mx.float32))[0]
    mine, theirs = mine[theirs > -np.inf], theirs[theirs > -np.inf]  # Phi 3 small rules some out
    assert np.all(np.diff(theirs[np.argsort(mine, kind="stable")]) >= -1e-5)
    target.check()


def test_a_head_that_was_quantised_since_is_found_again() -> None:
    target = Target(models.build("llama", intermediate_size=64))
    before, _ = last_row(target)
    nn.quantize(target.model, group_size=32, bits=8)
    after, hidden = last_row(target)
    assert hidden.shape == (1, target.hidden_size)
    np.testing.assert_allclose(before, after, atol=0.2)


def test_weights_that_are_not_numbers_are_named() -> None:
    model = models.build("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight[0, 0] = mx.nan
    with pytest.raises(RedrafterError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        Target(model).check()


def test_a_head_whose_rows_are_not_the_logits_is_refused_for_drafting() -> None:
    model = models.build("llama")

    class Reversed(type(model)):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> mx.array:
            return -super().__call__(*args, **kwargs)

    model.__class__ = Reversed
    Reversed.__module__ = "mlx_lm.models.llama"
    target = Target(model)
    target.check()
    assert target.refusal is not None
    assert "llama" in target.refusal


TIED = [name for name in architectures.CONFIGS if name.endswith(":tied")]


@pytest.mark.parametrize("name", TIED)
def test_a_weight_that_no_layer_multiplies_by_is_the_head(name: str) -> None:
    """Found as the model is hooked, so that it need not be checked to be drafted with."""
    target = Target(architectures.build(name))
    assert (target.verifies, target.refusal) == ("tree", None)
    head = target.output_head
    assert head is not None
    assert head.module is None
    assert head.layer is target.model.model.embed_tokens
    logits, hidden = last_row(target)
    assert mx.allclose(head.logits(hidden), logits, atol=1e-5)
    assert mx.allclose(hidden @ head.rows.T, logits, atol=1e-5)
    target.check()
    assert target.refusal is None


def test_a_model_without_a_head_is_refused_before_it_is_checked() -> None:
    model = models.build("llama")

    class Wider(type(model)):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> mx.array:
            logits = super().__call__(*args, **kwargs)
            return mx.concatenate([logits, logits[..., :1]], axis=-1)

    model.__class__ = Wider
    Wider.__module__ = "mlx_lm.models.llama"
    target = Target(model)
    assert (target.output_head, target.verifies) == (None, "nothing")
    refusal = target.refusal
    assert refusal is not None
    assert "final hidden state and its logits" in refusal
    target.check()
    assert target.refusal == refusal
