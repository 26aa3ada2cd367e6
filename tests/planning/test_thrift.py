"""What planning costs where drafts do not pay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_machines import (
    BABBLE,
    CPU,
    CURVES,
    KNOWN,
    LINEAR,
    M3,
    OPENBLAS,
    PLAIN,
    Chat,
    Text,
    after_first_tokens,
    costs_of,
    recorded_of,
)  # fmt: skip

from mlx_redrafter.drafting.recorded import RecordedDrafts
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.planning.allowance import EARLY_TOKENS, LEAST, START_KNOWN
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.probes import LEAST_AT_BEST
from mlx_redrafter.planning.trials import PlannerState

OFF_CURVES = (CPU, M3, OPENBLAS)


def off(curve: str, answers: int = 12) -> Chat:
    """A chat in which drafts have failed for long."""
    chat = Chat(costs_of(curve), Planner(costs_of(curve)))
    chat.answers(BABBLE, answers, 3)
    assert chat.planner.state is PlannerState.OFF
    return chat


@pytest.mark.parametrize("curve", OFF_CURVES)
def test_nothing_is_drafted_before_the_planner_is_out_of_patience(curve: str) -> None:
    # Where one chat ends just before a probe, another does not.
    waits = [plain_steps_before_a_probe(off(curve, answers).planner) for answers in range(10, 15)]
    assert max(waits) > 20


def plain_steps_before_a_probe(planner: Planner) -> int:
    """How many come before the next draft; nothing is drafted against the planner's word."""
    waited = 0
    for _ in range(2000):
        patience = planner.plan.patience
        for left in range(patience, 0, -1):
            assert planner.plan.shape is None
            assert planner.plan.patience <= left, "it is no longer than was said"
            planner.observe(ObservedStep(None, [PLAIN], 1.0, 64, early=True, overlapped=True))
            waited += 1
        if planner.plan.shape is not None:
            break
        planner.observe(ObservedStep(None, [PLAIN], 1.0, 64, early=True, overlapped=True))
        waited += 1
    assert planner.plan.shape is not None
    return waited


@pytest.mark.parametrize("curve", OFF_CURVES)
def test_plain_steps_told_together_count_as_told_one_by_one(curve: str) -> None:
    """The account, the machine's factor and the rate are as far as after single steps."""
    one, many = off(curve).planner, off(curve).planner
    step = ObservedStep(None, [PLAIN], 1.3, 64, early=True, overlapped=True)
    for _ in range(10):
        for _ in range(8):
            one.observe(step)
        many.observe(replace(step, repeats=8))
    assert many.plan.patience == pytest.approx(one.plan.patience, abs=1)
    assert many.clocks.machine == pytest.approx(one.clocks.machine, rel=0.02)
    assert many.prices.rate == pytest.approx(one.prices.rate, rel=0.02)
    assert many.prices.made(None).steps == one.prices.made(None).steps


def test_a_choice_hears_of_every_step() -> None:
    chat = Chat(costs_of(CPU), Planner(costs_of(CPU)))
    chat.answers(KNOWN, 3, 0)
    assert chat.planner.state is PlannerState.DRAFTING
    assert chat.planner.plan.patience == 0


def test_where_nothing_can_pay_it_has_all_patience() -> None:
    assert Planner(costs_of(LINEAR)).plan.patience > 8


@pytest.mark.parametrize(("two", "tried"), [(1.6, True), (1.9, False)])
def test_a_shape_that_could_gain_next_to_nothing_is_not_tried(two: float, tried: bool) -> None:
    """Two tokens for 1.9 would gain five per cent, were every guess right."""
    costs = costs_of(lambda n: 1.0 + (two - 1.0) * (n - 1) + 0.05 * (n > 2) * n, level=0.01)
    planner = after_first_tokens(Planner(costs))
    assert (planner.plan.shape is not None) is tried
    assert tried or planner.state is PlannerState.OFF
    assert 2 / (two + 0.01) > LEAST_AT_BEST or not tried


@pytest.mark.parametrize("curve", OFF_CURVES)
def test_forty_answers_without_any_gain_cost_little(curve: str) -> None:
    chat = Chat(costs_of(curve), Planner(costs_of(curve)), noise=0.0)
    chat.answers(BABBLE, 40, 1)
    assert chat.speed() >= 0.985


@pytest.mark.parametrize("curve", OFF_CURVES)
def test_a_drafter_whose_record_says_that_nothing_pays_is_tried_less(curve: str) -> None:
    costs = costs_of(curve)
    tried = {}
    for name, recorded in (("unknown", None), ("hopeless", recorded_of(BABBLE))):
        chat = Chat(costs, Planner(costs, recorded=recorded), noise=0.0)
        chat.answers(BABBLE, 40, 1)
        tried[name] = sum(shape is not None for shape in chat.shapes(0))
        assert chat.speed() >= 0.985
    assert 0 < tried["hopeless"] <= 0.7 * tried["unknown"]


@pytest.mark.parametrize("recorded", [None, recorded_of(BABBLE)], ids=["unknown", "hopeless"])
@pytest.mark.parametrize("watches", [False, True])
@pytest.mark.parametrize("curve", CURVES)
def test_a_first_answer_may_end_anywhere(
    curve: str, watches: bool, recorded: RecordedDrafts | None
) -> None:
    """Whatever its length, next to nothing of a text that cannot be guessed goes on drafts."""
    costs = costs_of(curve)
    for seed in range(4):
        planner = Planner(costs, watches=watches, recorded=recorded)
        chat = Chat(costs, planner, noise=0.0).answer(Text(*BABBLE, seed=seed), 96)
        made = seconds = 0.0
        for _, tokens, taken in chat.steps:
            made, seconds = made + tokens, seconds + taken
            next_one = 0.9  # of a plain step, that a CPU may have computed by now
            assert seconds - next_one - made <= 0.15 * (made + 1), (seed, made)


@pytest.mark.parametrize("curve", [CPU, M3, OPENBLAS])
def test_a_record_that_promised_too_much_is_dear_once(curve: str) -> None:
    """Of the first tokens no more is lost than is left, after a first draft that failed."""
    costs = costs_of(curve)
    for seed in range(8):
        planner = Planner(costs, recorded=recorded_of(KNOWN))
        chat = Chat(costs, planner, noise=0.0).answer(Text(*BABBLE, seed=seed), 64)
        shape = chat.shapes()[0]
        assert shape is not None
        made = lost = worst = 0.0
        for drafted, tokens, seconds in chat.steps:
            if made >= EARLY_TOKENS:
                break
            made += tokens
            lost += seconds - tokens if drafted else 0.0
            worst = max(worst, lost)
        assert worst <= costs.step_seconds(shape, 0) - 1.0 + START_KNOWN - LEAST, seed


@pytest.mark.parametrize("recorded", [None, recorded_of(BABBLE)], ids=["unknown", "hopeless"])
@pytest.mark.parametrize("watches", [False, True])
@pytest.mark.parametrize("curve", CURVES)
def test_patience_ends_when_a_probe_is_due(
    curve: str, watches: bool, recorded: RecordedDrafts | None
) -> None:
    """Never before it, and with it at the latest."""
    planner = Planner(costs_of(curve), watches=watches, recorded=recorded)
    planner.begin()
    waits = 0
    for step in range(200):
        due = planner.plan.shape or planner.plan.watch
        waits = max(waits - 1, planner.plan.patience)
        assert not (due and waits), step
        if due:
            break
        plain = ObservedStep(None, [PLAIN], 1.0, step, early=True, overlapped=True)
        planner.observe(plain)
    assert due or planner.state is PlannerState.OFF
