from __future__ import annotations

from typing import Any, cast

import pytest
from planning_machines import Cache

from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.tree import HostTree

SIZES = (1, 2, 4, 8, 16, 32)
COSTS = CostModel(SIZES, (64,), (tuple(1.0 + 0.05 * (n - 1) for n in SIZES),), {}, (1.0,))
CERTAIN = [0.95**depth for depth in range(1, 33)]


class Measurements:
    """Counts how often the machine is measured."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> CostModel:
        self.count += 1
        return COSTS


def step(nodes: int, tokens: int, seconds: float, **overlap: bool) -> ObservedStep:
    tree = HostTree((0,) * (1 + nodes), tuple(range(-1, nodes)), (0.0,) * (1 + nodes))
    record = StepRecord(tree, (0,) * (1 + nodes), tuple(range(tokens)), frozenset(range(1, nodes)))
    return ObservedStep(None, [record], seconds, 64, **overlap)


def test_a_text_in_which_nothing_repeats_needs_no_measurement() -> None:
    measure = Measurements()
    planner = HeadlessPlanner(measure)
    for _ in range(20):
        assert planner.plan.shape is None
        planner.observe(step(0, 1, 1.0))
        planner.copies.take_surprise([], 64)
        assert not planner.copies.waits_for_copies(0.0, [], 64)
        assert planner.copies.num_nodes([], 64) == 0
    assert planner.plan == HeadlessPlanner.plan
    assert measure.count == 0
    assert planner.copies.num_nodes(CERTAIN, 64) > 0
    assert planner.for_batch(3).copies.num_nodes(CERTAIN, 64) > 0
    assert measure.count == 1


def test_the_plain_speed_is_known_once_plain_steps_were_timed() -> None:
    planner = HeadlessPlanner(Measurements())
    assert planner.plain_speed(64) is None
    planner.copies.num_nodes(CERTAIN, 64)
    assert planner.plain_speed(64) is None
    for _ in range(60):
        planner.observe(step(0, 1, 2.0))
    assert planner.plain_speed(64) == pytest.approx(0.5, rel=0.1)


def test_what_steps_take_corrects_what_was_measured() -> None:
    planner = HeadlessPlanner(Measurements())
    assert planner.copies.num_nodes([0.3], 64) == 1
    for _ in range(60):  # another program slows down what uses all cores
        planner.observe(step(8, 5, 7.0))
        planner.observe(step(0, 1, 1.0))
    assert planner.measured_prices().check_seconds(9, 64) > 2 * COSTS.verify_seconds(9, 64)
    assert planner.measured_prices().plain_seconds(64) < 1.6
    assert planner.copies.num_nodes([0.3], 64) == 0


def test_plain_steps_between_copies_are_not_the_price_of_plain_decoding() -> None:
    """The first takes the time of two, the last hardly any, and both more than those between."""
    planner = HeadlessPlanner(Measurements())
    assert planner.copies.num_nodes([0.3], 64) == 1
    for _ in range(60):
        planner.observe(step(7, 5, COSTS.verify_seconds(8, 64)))
        planner.observe(step(0, 1, 2.4, overlapped=True))
        planner.observe(step(0, 1, 1.0, early=True, overlapped=True))
        planner.observe(step(0, 1, 0.2, early=True))
    prices = planner.measured_prices()
    gained = prices.check_seconds(8, 64) / prices.plain_seconds(64)
    assert gained == pytest.approx(COSTS.verify_seconds(8, 64), rel=0.03)


def test_a_batch_shares_what_is_learnt_and_has_costs_of_its_own() -> None:
    planner = HeadlessPlanner(Measurements())
    assert planner.for_batch(1) is planner
    several = planner.for_batch(4)
    assert several is planner.for_batch(4)
    assert several.copied is planner.copied
    seconds = several.measured_prices().check_seconds(2, 64)
    assert seconds == pytest.approx(COSTS.verify_seconds(8, 64))


def test_nothing_is_expected_of_guesses() -> None:
    planner, tree = HeadlessPlanner(Measurements()), HostTree((1, 2), (-1, 0), (0.0, -0.1))
    assert planner.guess_chances(tree) == [1.0, 0.0]
    assert planner.num_nodes_to_verify(tree, 64) == 0


def test_the_rate_is_what_was_made_of_late() -> None:
    planner = HeadlessPlanner(Measurements())
    assert planner.measured_prices().rate == pytest.approx(1.0)
    for _ in range(500):
        planner.observe(step(7, 4, COSTS.verify_seconds(8, 64)))
    rate = planner.measured_prices().rate
    assert rate == pytest.approx(4 / COSTS.verify_seconds(8, 64), rel=0.02)


def test_the_rate_forgets_a_loaded_machine_as_soon_as_it_is_free() -> None:
    """Else each second seems to bring little, and everything worth verifying."""
    planner = HeadlessPlanner(Measurements())
    wanted = planner.copies.num_nodes([0.5] * 8, 64)
    for load in (20.0, 1.0):
        for _ in range(50):
            planner.observe(step(0, 1, load, early=True, overlapped=True))
    assert planner.measured_prices().rate == pytest.approx(1.0, rel=0.25)
    assert planner.copies.num_nodes([0.5] * 8, 64) == wanted


def test_whatever_is_asked_first_of_copies_has_the_machine_measured_once() -> None:
    measure = Measurements()
    planner = HeadlessPlanner(measure)
    planner.copies.waits_for_copies(0.9, CERTAIN, 64)
    assert measure.count == 1
    planner.copies.num_nodes(CERTAIN, 64)
    assert measure.count == 1


def test_costs_are_measured_where_a_text_has_grown_long() -> None:
    """Once copies are priced at all, and once for a context."""
    asked: list[int] = []

    def measure_there(costs: CostModel, cache: Any) -> CostModel:
        asked.append(len(cache))
        return costs.with_context(len(cache), {1: 1.5, 8: 6.0, 32: 20.0})

    planner = HeadlessPlanner(Measurements(), measure_there)
    planner.begin(cast("Any", Cache(5000)))
    assert asked == [], "nothing repeats so far"
    certain = planner.copies.num_nodes(CERTAIN, 5000)
    batch = planner.for_batch(2)
    batch.copies.num_nodes(CERTAIN, 5000)
    for length in (100, 5000, 5100):
        planner.begin(cast("Any", Cache(length)))
    assert asked == [5000]
    assert planner.copies.num_nodes(CERTAIN, 5000) < certain
    assert batch.costs.contexts == planner.costs.contexts
