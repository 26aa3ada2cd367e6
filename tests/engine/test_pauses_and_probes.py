"""Drafts that pause after failures, and probes, which neither a pause nor a copy keeps away."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from decoding_cases import VerifyingAll

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.backoff import LONGEST_PAUSE
from mlx_redrafter.engine.choose import DraftChooser
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.copy_pricing import BudgetedCopies
from mlx_redrafter.engine.copying import StepDraft
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.planner_lock import PlannerLock
from mlx_redrafter.engine.reports import StepReports
from mlx_redrafter.engine.sequence import Sequence
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.shared_planner import shared
from mlx_redrafter.tree import DraftTree

PROMPT = models.prompt_of(12)
DRAFT, PROBE = BeamShape(1, 4), BeamShape(3, 4, 7)


@cache
def repeating() -> Any:
    """A model whose next token follows from the last: greedy texts go round in circles."""
    model = models.build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
    return model


class Turns(VerifyingAll):
    """A planner whose drafts follow each other by turns; those of one shape are probes.

    Args:
        shapes: By turns.
        early: Whether drafts are made in the graph of the step before.
        price: Of an ordinary draft, in plain steps; None says nothing of it.
    """

    copies = BudgetedCopies(8)

    def __init__(
        self, shapes: Tokens[BeamShape], *, early: bool = False, price: float | None = None
    ):
        super().__init__()
        self._shapes, self._early, self._price = shapes, early, price

    @property
    def plan(self) -> StepPlan:
        shape = self._shapes[len(self.steps) % len(self._shapes)]
        return StepPlan(shape, early=self._early, probing=shape == PROBE)

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


class Wrong:
    """Proposes what the text never says."""

    seconds = 0.0
    max_depth = 2

    def __init__(self, token: int, lookback: int | None = None):
        self._token, self.lookback = token, lookback

    def __call__(self, state: DraftInput) -> DraftTree:
        wrong = [self._token, self._token]
        tokens = mx.concatenate([state.root, mx.array(wrong, dtype=mx.int32)])
        tree = DraftTree.from_parents([0, *wrong], [-1, 0, 1])
        return replace(tree, tokens=tokens, known=None)

    def together(self, states: Tokens[DraftInput]) -> list[DraftTree]:
        return [self(state) for state in states]

    def begin(self, prompt: Tokens[int]) -> Any:
        return self

    def accepted(self, tokens: Tokens[int]) -> None:
        """Nothing is remembered."""


def failing(lookback: int | None = None) -> tuple[SpeculativeModel, list[int]]:
    """A model whose drafts are never right, and its text."""
    target = models.shared("llama")
    config = DecodingConfig(60, draft=False)
    text = [one.token for one in decode(SpeculativeModel(target), PROMPT, config)]
    never = next(token for token in range(models.VOCAB) if token not in text)
    return SpeculativeModel(target, Wrong(never, lookback)), text


def drafted(shapes: Tokens[BeamShape], price: float | None, *, early: bool = False) -> str:
    """What a text of failures drafts, step by step: d a draft, p a probe, - nothing."""
    planner, (model, text) = Turns(shapes, early=early, price=price), failing(0 if early else None)
    config = DecodingConfig(60)
    assert [one.token for one in decode(model, PROMPT, config, planner=planner)] == text
    assert not any(step.records[0].accepted for step in planner.steps)
    letters = {None: "-", DRAFT: "d", PROBE: "p"}
    return "".join(letters[step.shape] * step.repeats for step in planner.steps)[:38]


def test_drafts_that_fail_pause_for_longer_and_longer() -> None:
    """Two that cost four plain steps lose what they may; then one fails after each pause."""
    assert drafted([DRAFT], 4.0) == "dd--d----d--------d----------------d--"
    assert drafted([DRAFT], 1.0) == "d" * 38
    assert drafted([DRAFT], None) == "d" * 38, "of whose use nothing is said"


def test_drafts_made_in_the_step_before_pause_too() -> None:
    """The next one is made by the time it is known that the last has failed."""
    assert drafted([DRAFT], 4.0, early=True) == "ddd----dd----------------dd-----------"


@pytest.mark.parametrize("early", [True, False])
def test_probes_are_made_in_a_pause(*, early: bool) -> None:
    shapes = [DRAFT, DRAFT, DRAFT, DRAFT, DRAFT, PROBE]
    assert "-p-----p-" in drafted(shapes, 4.0, early=early)


@pytest.mark.parametrize("early", [True, False])
def test_to_ask_what_is_drafted_shortens_no_pause(*, early: bool) -> None:
    """What was chosen may come to nothing: another text joins before the step is taken."""
    model, _ = failing(0)
    planner = shared(Turns([DRAFT], early=early), PlannerLock())
    chooser = DraftChooser(model, planner, StepReports())
    text = Sequence(model, PROMPT, DecodingConfig())
    text.backoff.drafted(100.0, 1.0)
    for _ in range(2 * LONGEST_PAUSE):
        assert chooser.choose([text]).paused
        following = chooser.next_drafts([text], [StepDraft()])
        assert (following is not None) == early
        assert following is None or following.paused
