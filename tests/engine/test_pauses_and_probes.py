"""Drafts that pause after failures, and probes, which neither a pause nor a copy keeps away."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from decoding_cases import ScriptedPlanner

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.copy_pricing import BudgetedCopies
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.tree import HostTree

PROMPT = models.prompt_of(12)
DRAFT, PROBE = BeamShape(1, 4), BeamShape(3, 4, 7)


@cache
def repeating() -> Any:
    """A model whose next token follows from the last: greedy texts go round in circles."""
    model = models.build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
    return model


class Turns(ScriptedPlanner):
    """A planner whose drafts follow each other by turns; those of one shape are probes.

    Args:
        shapes: By turns.
        early: Whether drafts are made in the graph of the step before.
        price: Of an ordinary draft, in plain steps; None says nothing of it.
    """

    copies = BudgetedCopies(8)

    def __init__(
        self, shapes: Sequence[BeamShape], *, early: bool = False, price: float | None = None
    ):
        self._shapes, self._early, self._price = shapes, early, price
        self.steps: list[ObservedStep] = []

    @property
    def plan(self) -> StepPlan:
        shape = self._shapes[len(self.steps) % len(self._shapes)]
        return StepPlan(shape, early=self._early, probing=shape == PROBE)

    def guess_chances(self, tree: HostTree) -> list[float]:
        return [0.5**depth for depth in tree.depths]

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return len(tree.tokens) - 1

    def observe(self, step: ObservedStep) -> None:
        self.steps.append(step)

    def price(self, step: ObservedStep) -> float | None:
        return None if step.probing else self._price


@pytest.mark.parametrize("early", [True, False])
def test_what_was_planned_as_a_probe_is_verified_as_one(*, early: bool) -> None:
    """By the time it is verified the next plan is no probe, and the one after it may be."""
    planner = Turns([PROBE, DRAFT, DRAFT], early=early)
    model = SpeculativeModel(repeating(), models.build_drafter())
    config = DecodingConfig(120, copy=True)
    text = [one.token for one in decode(model, PROMPT, config, planner=planner)]
    assert text == [one.token for one in decode(model, PROMPT, DecodingConfig(120, draft=False))]
    drafted = [(step.drafted_before or step.shape, step) for step in planner.steps[:-1]]
    probes = [step for shape, step in drafted if shape == PROBE]
    others = [step for shape, step in drafted if shape == DRAFT]
    assert len(probes) > 2
    assert all(step.probing and not step.records[0].copied for step in probes)
    assert not any(step.probing for step in others)
    repeated = [bool(step.records[0].copied) for step in others]
    assert any(repeated)
    assert all(repeated[repeated.index(True) :]), "whatever was planned by then"
