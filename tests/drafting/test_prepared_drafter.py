"""A drafter prepared for drafts says what the drafter itself says."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import models
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.drafter import OutputRows
from mlx_redrafter.drafting.kinds import drafter_of
from mlx_redrafter.drafting.prepared_anchored import (
    PreparedAnchoredDrafter,
    PreparedRecurrentDrafter,
)
from mlx_redrafter.drafting.shared_head import share_rows
from mlx_redrafter.system import device
from mlx_redrafter.target.target import Target

EXIT = 24
KINDS: dict[str, dict[str, Any]] = {
    "a projection": {"exit_dim": EXIT, "num_draft_layers": 2},
    "a projection alone": {"exit_dim": EXIT, "num_draft_layers": 0},
    "no projection": {"exit_dim": 2 * models.HIDDEN},
    "a plain sum": {"exit_dim": EXIT, "rnn": False},
}


def hidden_and_states(*shape: int) -> tuple[mx.array, mx.array]:
    """One hidden state for each text, and states of shape (batch, ..., HIDDEN)."""
    hidden = mx.random.normal((shape[0], *[1] * (len(shape) - 1), models.HIDDEN))
    return hidden, mx.random.normal((*shape, models.HIDDEN))


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_drafters(kind: str, shape: tuple[int, ...]) -> None:
    drafter = models.build_drafter(seed=3, **KINDS[kind])
    prepared = PreparedRecurrentDrafter(drafter)
    hidden, states = hidden_and_states(*shape)
    found = prepared.logits(prepared.project_hidden(hidden), states)
    assert mx.allclose(found, drafter.logits(hidden, states), atol=1e-5)


def test_a_hidden_state_is_projected_once() -> None:
    hidden, _ = hidden_and_states(1)
    projecting = models.build_drafter(exit_dim=EXIT)
    assert PreparedRecurrentDrafter(projecting).project_hidden(hidden).shape == (1, EXIT)
    other = models.build_drafter(exit_dim=2 * models.HIDDEN)
    assert PreparedRecurrentDrafter(other).project_hidden(hidden) is hidden


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"), [("affine", 4, 32), ("affine", 6, 32), ("mxfp4", 4, 32)]
)
def test_a_quantised_projection_is_halved(mode: str, bits: int, group_size: int) -> None:
    drafter = models.build_drafter(exit_dim=EXIT, seed=5)
    nn.quantize(
        drafter, group_size, bits, mode=mode, class_predicate=lambda name, _: name == "input_proj"
    )
    prepared = PreparedRecurrentDrafter(drafter)
    hidden, states = hidden_and_states(2, 3)
    assert prepared.project_hidden(hidden).shape == (2, 1, EXIT)
    found = prepared.logits(prepared.project_hidden(hidden), states)
    assert mx.allclose(found, drafter.logits(hidden, states), atol=1e-4)


def test_a_group_over_both_halves_stays_whole() -> None:
    drafter = models.build_drafter(exit_dim=EXIT, seed=5)
    nn.quantize(drafter, 2 * models.HIDDEN, 8, class_predicate=lambda name, _: name == "input_proj")
    prepared = PreparedRecurrentDrafter(drafter)
    hidden, states = hidden_and_states(2)
    assert prepared.project_hidden(hidden) is hidden
    assert mx.array_equal(prepared.logits(hidden, states), drafter.logits(hidden, states))


def test_independent_heads_are_used_as_they_are() -> None:
    config = DrafterConfig(models.HIDDEN, models.VOCAB, models.HIDDEN, 1, independent_heads=2)
    drafter = drafter_of(config)
    models.randomise(drafter, 7)
    prepared = PreparedAnchoredDrafter(drafter)
    hidden, embeddings = hidden_and_states(3)
    state = drafter.advance(embeddings, drafter.initial_state(3))
    found = prepared.logits(prepared.project_hidden(hidden), state)
    assert mx.array_equal(found, drafter.logits(hidden, state))


def test_shared_rows() -> None:
    target = Target(models.shared("llama"))
    config = DrafterConfig(models.HIDDEN, models.VOCAB, models.HIDDEN, 1, shared_rows=True)
    drafter = drafter_of(config)
    models.randomise(drafter, 7)
    share_rows(drafter, target)
    prepared = PreparedRecurrentDrafter(drafter)
    hidden, states = hidden_and_states(2)
    found = prepared.logits(prepared.project_hidden(hidden), states)
    assert mx.allclose(found, drafter.logits(hidden, states), atol=1e-5)


@pytest.mark.parametrize("as_column", [False, True])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (2, 6), (3, 2, 6)], ids=str)
def test_output_rows(
    shape: tuple[int, ...], as_column: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_redrafter.drafting.drafter.takes_columns", lambda _: as_column)
    rows = OutputRows(6, 9, bias=False)
    x = mx.random.normal(shape)
    found = rows(x)
    assert found.shape == (*shape[:-1], 9)
    assert mx.allclose(found, x @ rows.weight.T, atol=1e-5)


def test_columns_are_for_small_float32_with_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = mx.zeros((1000, 1000)), mx.zeros((1000, 1001))
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    monkeypatch.setattr(device, "_has_openblas", lambda: True)
    assert device.takes_columns(small)
    assert not device.takes_columns(large)
    assert not device.takes_columns(small.astype(mx.bfloat16))
    monkeypatch.setattr(device, "_has_openblas", lambda: False)
    assert not device.takes_columns(small)
    monkeypatch.setattr(device, "_has_openblas", lambda: True)
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert not device.takes_columns(small)
