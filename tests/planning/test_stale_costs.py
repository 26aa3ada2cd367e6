"""Costs that were measured while another program ran: how soon the planner knows better."""

from __future__ import annotations

import pytest
from planning_machines import KNOWN, OPENBLAS, REAL, Chat, costs_of, recorded_of

from mlx_redrafter.planning.clocks import Clocks
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner


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


def test_what_kinds_of_step_cost_is_learnt_from_their_first_jumps() -> None:
    clocks = Clocks(machine(1.0, 1.2))
    for _ in range(6):
        clocks.observe(1, 1.0, 1.0)
    for _ in range(3):
        clocks.observe(4, 2.4, 1.2)
    # The machine is as it was: it is drafted steps that take twice as long.
    assert clocks.factor(1) == pytest.approx(1.0, abs=0.1)
    assert clocks.factor(4) == pytest.approx(2.0, abs=0.15)


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
