"""Forecasts beside what was made: of drafts, and of the steps between them."""

from __future__ import annotations

from typing import Any

import pytest
from planning_machines import CPU, PLAIN, costs_of

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.forecast import Forecast
from mlx_redrafter.planning.honesty import LARGEST, LARGEST_STEP, PRIOR_STEPS, Honesty
from mlx_redrafter.planning.prices import StepPrices
from mlx_redrafter.tree import HostTree

SHAPE = BeamShape(1, 3)
CHOSEN = Forecast(SHAPE, 2.0, 1.5)
TREE = HostTree((1, 2, 3, 4), (-1, 0, 1, 2), (0.0, -0.1, -0.2, -0.3))
CHOICES = (2, 3, 4, 5)


def step(accepted: int, *, copied: bool = False, **changed: Any) -> ObservedStep:
    """One that verified three nodes."""
    nodes = frozenset((1, 2, 3)) if copied else frozenset()
    record = StepRecord(TREE, CHOICES, tuple(range(1 + accepted)), nodes)
    return ObservedStep(None if copied else SHAPE, [record], 1.5, 64, **changed)


def quiet() -> ObservedStep:
    return ObservedStep(None, [PLAIN], 1.0, 64, early=True, overlapped=True)


@pytest.fixture
def prices() -> StepPrices:
    return StepPrices(costs_of(CPU))


def test_nothing_but_drafts_leaves_the_forecast_as_it_is(prices: StepPrices) -> None:
    honesty = Honesty()
    for _ in range(50):
        honesty.observe(step(1), CHOSEN, prices)
    assert honesty.with_other_steps(CHOSEN, 1.0) == CHOSEN
    (made,) = honesty.correct([CHOSEN])
    assert made.tokens_per_step == pytest.approx(CHOSEN.tokens_per_step)
    assert made.step_seconds == pytest.approx(CHOSEN.step_seconds, rel=0.03)


def test_plain_steps_and_copies_count_as_often_as_they_are(prices: StepPrices) -> None:
    """In the mean over a long text, whatever their order."""
    honesty = Honesty()
    row = [step(1), quiet(), step(3, copied=True), step(1)]
    for number in range(800):
        honesty.observe(row[number % 4], CHOSEN, prices)
    made = honesty.with_other_steps(CHOSEN, 1.0)
    price = prices.price(step(3, copied=True))
    assert made.tokens_per_step == pytest.approx((2 * 2.0 + 1.0 + 4.0) / 4, rel=0.02)
    assert made.step_seconds == pytest.approx((2 * 1.5 + 1.0 + price) / 4, rel=0.02)


def test_copies_say_nothing_of_what_drafts_make(prices: StepPrices) -> None:
    honesty = Honesty()
    for _ in range(50):
        honesty.observe(step(3, copied=True), CHOSEN, prices)
    assert honesty.correct([CHOSEN]) == [CHOSEN]


def test_what_was_learnt_of_an_odd_answer_is_taken_back(prices: StepPrices) -> None:
    honesty = Honesty()
    for _ in range(20):
        honesty.observe(step(3, copied=True), CHOSEN, prices)
    saved, before = honesty.save(), honesty.with_other_steps(CHOSEN, 1.0)
    for _ in range(20):
        honesty.observe(quiet(), CHOSEN, prices)
        honesty.observe(step(0), CHOSEN, prices)
    assert honesty.with_other_steps(CHOSEN, 1.0) != before
    honesty.restore(saved)
    honesty.restore(saved)
    assert honesty.with_other_steps(CHOSEN, 1.0) == before
    honesty.forget()
    assert honesty.with_other_steps(CHOSEN, 1.0) == CHOSEN


def test_what_forecasts_have_learnt_meanwhile_is_not_put_right_twice(prices: StepPrices) -> None:
    """Drafts made four tokens where two were forecast, until four are: no more are to be expected,
    and never more than the shape has."""
    honesty = Honesty()
    for _ in range(40):
        honesty.observe(step(3), CHOSEN, prices)
    (early,) = honesty.correct([CHOSEN])
    assert 3.0 < early.tokens_per_step <= 4.0
    learnt = Forecast(SHAPE, 3.9, 1.5)
    (made,) = honesty.correct([learnt])
    assert made.tokens_per_step == pytest.approx(4.0, rel=0.03)
    assert made.tokens_per_step <= 1 + SHAPE.length


LONG = BeamShape(1, 11)


def long_step(accepted: int) -> ObservedStep:
    """One that verified eleven nodes in a row."""
    tree = HostTree(tuple(range(12)), tuple(range(-1, 11)), tuple(-0.1 * n for n in range(12)))
    record = StepRecord(tree, tuple(range(1, 13)), tuple(range(1 + accepted)))
    return ObservedStep(LONG, [record], 1.5, 64)


@pytest.mark.parametrize(
    ("drafts", "accepted", "forecast", "tokens"),
    [
        (0, 11, 1.5, 1.5),
        (1, 2, 1.5, 1.5 * (PRIOR_STEPS + 2.0) / (PRIOR_STEPS + 1)),
        (1, 11, 1.5, 1.5 * (PRIOR_STEPS + LARGEST_STEP) / (PRIOR_STEPS + 1)),
        (200, 11, 1.5, 1.5 * LARGEST),
        (200, 0, 8.0, 8.0 / LARGEST),
    ],
    ids=["none", "one", "one of eight times as many", "many such", "many of an eighth"],
)
def test_neither_one_step_nor_many_put_a_forecast_right_by_more_than_they_may(
    prices: StepPrices, drafts: int, accepted: int, forecast: float, tokens: float
) -> None:
    """Beside ten steps that count as made as was forecast."""
    assert (PRIOR_STEPS, LARGEST_STEP, LARGEST) == (10.0, 4.0, 2.0)
    honesty, given = Honesty(), Forecast(LONG, forecast, 1.5)
    for _ in range(drafts):
        honesty.observe(long_step(accepted), given, prices)
    (made,) = honesty.correct([given])
    assert made.tokens_per_step == pytest.approx(tokens)


def test_no_step_s_price_counts_for_more_than_it_may(prices: StepPrices) -> None:
    honesty, dear = Honesty(), long_step(2)
    given = Forecast(LONG, 3.0, prices.seconds(dear) / 8.0)
    honesty.observe(dear, given, prices)
    (made,) = honesty.correct([given])
    counted = (PRIOR_STEPS + LARGEST_STEP) / (PRIOR_STEPS + 1)
    assert made.step_seconds == pytest.approx(counted * given.step_seconds)


def test_other_shapes_are_put_right_by_what_the_chosen_ones_made(prices: StepPrices) -> None:
    honesty, other = Honesty(), Forecast(BeamShape(1, 7), 3.0, 2.0)
    for _ in range(100):
        honesty.observe(step(0), CHOSEN, prices)
    corrected = honesty.correct([CHOSEN, other])
    assert [one.shape for one in corrected] == [SHAPE, other.shape]
    assert corrected[1].tokens_per_step / 3.0 == pytest.approx(
        corrected[0].tokens_per_step / 2.0, rel=0.01
    )
    assert corrected[1].tokens_per_step < 2.0
