"""Costs that were measured while another program ran: how soon the planner knows better."""

from __future__ import annotations

import math
import random

import pytest
from planning_machines import (
    KNOWN,
    LINEAR,
    OPENBLAS,
    OVERRATED,
    REAL,
    Chat,
    Text,
    costs_of,
    recorded_of,
)

from mlx_redrafter.planning.clocks import Clocks
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.trials import PlannerState


def machine(plain: float, drafted: float) -> CostModel:
    """A small model: a plain step, and what steps that draft take of it whatever their size."""
    return costs_of(lambda n: plain if n == 1 else drafted + 0.02 * n)


@pytest.mark.parametrize("load", [1.5, 2.0])
def test_a_plain_step_that_was_measured_under_load_is_found_out(load: float) -> None:
    """Drafts seem to pay, and lose half of the speed."""
    truth, believed = machine(1.0, 2.4), machine(load, 1.2 * load)
    planner = Planner(believed, recorded=recorded_of(REAL))
    assert planner.choice is not None, "it is believed"
    chat = Chat(truth, planner).answers(REAL, 10)
    assert chat.speed() > 0.9
    assert chat.speed(since=100) > 0.95


def test_what_a_kind_of_step_costs_shows_between_two_like_ones() -> None:
    """The machine is as it was: it is drafted steps that take twice as long."""
    clocks = Clocks(machine(1.0, 1.2))
    for _ in range(6):
        clocks.observe(1, 1.0, 1.0)
    for _ in range(3):
        for _ in range(3):
            clocks.observe(4, 2.4, 1.2)
        for _ in range(3):
            clocks.observe(1, 1.0, 1.0)
    assert clocks.factor(1) == pytest.approx(1.0, abs=0.1)
    assert clocks.factor(4) == pytest.approx(2.0, abs=0.15)
    assert clocks.agreed > 0, "as is known by now"
    for rows, seconds in ((4, 2.4), (1, 0.6), (4, 2.4)):
        clocks.observe(rows, seconds, 1.2 if rows > 1 else 1.0)
    assert clocks.agreed == 0, "plain steps are faster than was thought"


def test_what_a_lone_plain_step_takes_says_nothing_of_drafted_ones() -> None:
    """It overlaps with nothing; where plain steps in a row were seen, drafts are told by those."""
    clocks = Clocks(machine(1.0, 1.2))
    for _ in range(6):
        clocks.observe(1, 1.0, 1.0)
    for _ in range(8):
        for rows, seconds, expected in ((4, 1.2, 1.2), (4, 1.2, 1.2), (0, 1.3, 1.0)):
            clocks.observe(rows, seconds, expected)
    assert clocks.factor(4) == pytest.approx(1.0, abs=0.05)
    assert clocks.factor(1) == pytest.approx(1.0, abs=0.15)
    assert clocks.factor(0) == pytest.approx(1.3, abs=0.1)


def test_where_plain_steps_never_overlap_they_say_what_drafted_ones_take() -> None:
    clocks = Clocks(machine(1.0, 1.2))
    for _ in range(8):
        for rows, seconds, expected in ((4, 2.4, 1.2), (4, 2.4, 1.2), (0, 1.0, 1.0)):
            clocks.observe(rows, seconds, expected)
    assert clocks.factor(4) / clocks.factor(0) == pytest.approx(2.0, abs=0.25)


def test_another_program_that_begins_with_a_step_says_little_of_its_kind() -> None:
    """And no more when it is gone with it: once is no evidence."""
    clocks = Clocks(machine(1.0, 1.2))
    for rows, seconds in ((1, 1.0), (4, 1.2), (1, 1.0), (4, 1.2)) * 3:
        clocks.observe(rows, seconds, seconds)
    clocks.observe(1, 3.0, 1.0)
    clocks.observe(4, 1.2, 1.2)
    assert clocks.factor(4) / clocks.factor(1) > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_bursts_of_load_do_not_make_drafts_look_cheap(seed: int) -> None:
    """What the steps would have taken without them: hardly less than plain decoding."""
    costs, rng, left = costs_of(OPENBLAS), random.Random(seed), [0, 1.0]

    def load(step: int) -> float:
        if step < 600 and left[0] <= 0 and rng.random() < 0.02:
            left[:] = [int(rng.expovariate(1 / 25)) + 1, rng.choice((1.5, 2.0, 3.0, 5.0, 10.0))]
        left[0] -= 1
        return left[1] * math.exp(0.3 * rng.gauss(0, 1)) if left[0] >= 0 else 1.0

    chat = Chat(costs, Planner(costs, watches=True), load=load, alone=1.3)
    for number in range(40):
        chat.answer(Text(*OVERRATED, seed=1000 * seed + number), 27)
    taken = sum(costs.step_seconds(shape, 0) for shape in chat.shapes())
    assert sum(tokens for _, tokens, _ in chat.steps) / taken * costs.plain[0] > 0.93


def test_what_a_loaded_machine_took_is_no_measure_of_what_is_worth_verifying() -> None:
    """Tokens a second were few then; they are as many as ever once it is free."""
    costs = costs_of(OPENBLAS)
    chat = Chat(costs, Planner(costs))
    chat.answers(KNOWN, 5)
    planner = chat.planner
    assert planner is not None
    before = planner.prices.rate
    chat.load = lambda _step: 20.0
    chat.answers(KNOWN, 2, seed=1)
    chat.load = lambda _step: 1.0
    chat.answers(KNOWN, 4, seed=2)
    assert planner.prices.rate == pytest.approx(before, rel=0.25)


def test_where_kinds_are_forgotten_nothing_agrees_with_what_is_known_of_them() -> None:
    """Plain steps among drafts are to show it soon again."""
    clocks = Clocks(machine(1.0, 1.2))
    for rows, seconds in ((1, 1.0), (4, 1.2)) * 4:
        clocks.observe(rows, seconds, seconds)
    assert clocks.agreed > 0
    clocks.doubt()
    assert clocks.agreed == 0


@pytest.mark.parametrize("sequences", [1, 4])
def test_costs_that_contradicted_each_other_are_tried_out_in_batches_as_well(
    sequences: int,
) -> None:
    """By them no draft can pay, but they are not known well enough to try none."""
    believed = costs_of(LINEAR)
    assert Planner(believed).for_batch(sequences).state is PlannerState.OFF
    planner = Planner(believed.doubted()).for_batch(sequences)
    assert planner.costs.doubtful
    assert planner.state is PlannerState.TRYING
