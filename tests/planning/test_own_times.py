"""A draft's time belongs to the step that verifies it, wherever a machine makes the draft."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from planning_machines import CPU, PLAIN, costs_of

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.clocks import ALONE, Clocks
from mlx_redrafter.planning.clocks import PLAIN as PLAIN_ROW
from mlx_redrafter.planning.prices import StepPrices
from mlx_redrafter.tree import HostTree

SHAPE = BeamShape(1, 3)
DRAFTED = StepRecord(HostTree((0, 1, 2, 3), (-1, 0, 1, 2), (0.0,) * 4), (1, 2, 9, 9), (0, 1, 2))
COSTS = costs_of(CPU, level=0.15)
DRAFT, VERIFY = COSTS.draft_seconds(SHAPE), COSTS.check_seconds(4, 64)


def plain(seconds: float, **changed: object) -> ObservedStep:
    """A plain step in the middle of others."""
    amid = ObservedStep(None, [PLAIN], seconds, 64, early=True, overlapped=True)
    return replace(amid, **changed)  # type: ignore[arg-type]


def drafted(seconds: float, **changed: object) -> ObservedStep:
    """A step that verifies a draft."""
    return replace(ObservedStep(SHAPE, [DRAFTED], seconds, 64), **changed)  # type: ignore[arg-type]


def with_draft(step: ObservedStep, follows: bool, seconds: float) -> ObservedStep:
    """A step, or one with which a draft of the next overlapped that took so long of its time."""
    if not follows:
        return step
    return replace(step, seconds=step.seconds + seconds, overlapped_draft=SHAPE)


def on_cpu(plain_steps: int) -> Iterator[ObservedStep]:
    """A row of plain steps and two drafts; a launch waits for the forward before it, and drafts."""
    if plain_steps == 1:
        yield plain(1.0 + DRAFT, early=False, overlapped=False, next_shape=SHAPE)
    else:
        yield with_draft(plain(2.0, early=False), plain_steps == 2, DRAFT)
        for left in range(plain_steps - 2, 0, -1):
            yield with_draft(plain(1.0), left == 1, DRAFT)
        yield plain(0.0, overlapped=False, next_shape=SHAPE)
    yield drafted(VERIFY + DRAFT, drafted_before=SHAPE, next_shape=SHAPE)
    yield drafted(VERIFY, drafted_before=SHAPE)


def on_gpu(plain_steps: int) -> Iterator[ObservedStep]:
    """The same, where each step takes the time of its own graph."""
    for left in range(plain_steps - 1, 0, -1):
        yield with_draft(plain(1.0, early=left < plain_steps - 1), left == 1, 0.0)
    early = plain_steps > 1
    yield plain(1.0 + DRAFT, early=early, overlapped=False, next_shape=SHAPE)
    yield drafted(VERIFY + DRAFT, drafted_before=SHAPE, next_shape=SHAPE)
    yield drafted(VERIFY, drafted_before=SHAPE)


@pytest.mark.parametrize("machine", [on_cpu, on_gpu])
@pytest.mark.parametrize("plain_steps", [1, 2, 3, 9])
def test_steps_that_cost_what_was_measured_change_no_price(machine, plain_steps) -> None:
    prices = StepPrices(COSTS)
    for _ in range(30):
        for step in machine(plain_steps):
            prices.time(step)
    for rows in (ALONE, PLAIN_ROW, len(DRAFTED.tree.tokens)):
        assert prices.clocks.factor(rows) == pytest.approx(1.0, abs=1e-6), rows


@pytest.mark.parametrize("machine", [on_cpu, on_gpu])
@pytest.mark.parametrize("plain_steps", [1, 2, 3, 9])
def test_no_time_is_lost_and_none_counted_twice(machine, plain_steps) -> None:
    prices = StepPrices(COSTS)
    steps = list(machine(plain_steps))
    taken = sum(step.seconds for step in steps)
    assert sum(prices.paid(step) for step in steps) == pytest.approx(taken)


@pytest.mark.parametrize("seconds", [1.0, 1.3])
def test_a_draft_that_was_not_worth_verifying_is_paid_all_the_same(seconds: float) -> None:
    prices = StepPrices(COSTS)
    wasted = plain(seconds, early=False, overlapped=False, drafted_before=SHAPE)
    assert prices.paid(wasted) == pytest.approx(seconds + DRAFT)
    for _ in range(40):
        prices.time(wasted)
    assert prices.clocks.seconds(ALONE, 64) == pytest.approx(seconds, rel=1e-3)


def test_a_draft_that_is_watched_belongs_to_no_other_step() -> None:
    prices = StepPrices(COSTS)
    watching = plain(1.0 + DRAFT, next_shape=SHAPE, watching=True)
    assert prices.paid(watching) == pytest.approx(1.0 + DRAFT)


def test_a_plain_step_is_never_thought_slower_than_one_that_overlaps_with_nothing() -> None:
    costs = replace(COSTS, plain=(0.7,))
    clocks = Clocks(costs)
    for turn in range(200):  # what stands alone seems fast, what stands in a row seems slow
        rows, seconds = (ALONE, 0.9) if turn % 2 else (PLAIN_ROW, 1.1)
        clocks.observe(rows, seconds, clocks.measured(rows, 64))
        assert clocks.seconds(PLAIN_ROW, 64) <= clocks.seconds(ALONE, 64) * (1 + 1e-9)
    assert math.isclose(clocks.apart_seconds(64), 0.0, abs_tol=1e-9)


def test_the_first_copies_of_each_length_count_for_the_speed() -> None:
    """They may have waited for a compiler: what they should take is counted, not what they did."""
    prices = StepPrices(costs_of(CPU))
    tree = HostTree(tuple(range(8)), tuple(range(-1, 7)), (0.0,) * 8)
    copied = StepRecord(tree, tuple(range(1, 9)), tuple(range(8)), copied=frozenset(range(1, 8)))
    prices.time(ObservedStep(None, [copied], 1000.0, 64))
    assert prices.tokens == 8
    assert prices.rate == pytest.approx(8 / prices.check_seconds(8, 64))
