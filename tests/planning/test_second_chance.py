"""An odd answer among ordinary ones: drafting begins again with the next."""

from __future__ import annotations

import pytest
from planning_machines import (
    BABBLE,
    CPU,
    KNOWN,
    M1,
    M3,
    OPENBLAS,
    REAL,
    Chat,
    best_speed,
    costs_of,
    recorded_of,
    worth,
)

from mlx_redrafter.planning.allowance import (
    LEAST,
    LEAST_CHANCE,
    SAVED,
    SECOND_CHANCE,
    START,
    Allowance,
)
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.probes import SMALL_PROBE_PRICE
from mlx_redrafter.planning.second_chance import FAILURES_TO_CHANGE, MOST_PASSED_OVER, SecondChance
from mlx_redrafter.planning.trials import PlannerState

Kind = tuple[float, float, float]


def good_chat(curve: str, kind: Kind, *, recorded: bool = False) -> Chat:
    costs = costs_of(curve)
    planner = Planner(costs, recorded=recorded_of(kind) if recorded else None)
    return Chat(costs, planner, noise=0.03).answers(kind, 8)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
@pytest.mark.parametrize("kind", [KNOWN, REAL])
def test_after_an_odd_answer_the_next_is_as_fast_as_before(
    curve: str, kind: Kind, recorded: bool
) -> None:
    chat = good_chat(curve, kind, recorded=recorded)
    tokens, seconds = 0, 0.0
    for number in range(8):
        chat.answers(BABBLE, 1, 100 + number)
        if kind is KNOWN:
            assert chat.planner is not None
            assert chat.planner.state is not PlannerState.DRAFTING
        since = len(chat.steps)
        chat.answers(kind, 1, 200 + number)
        tokens += sum(made for _, made, _ in chat.steps[since:])
        seconds += sum(taken for _, _, taken in chat.steps[since:])
    # A draft of a real text makes two tokens or none: eight answers say less of those.
    wanted = 0.92 if kind is KNOWN else 0.88
    assert tokens / seconds >= wanted * best_speed(kind, costs_of(curve))


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3])
def test_where_the_texts_have_changed_chances_become_rare(curve: str) -> None:
    chat = good_chat(curve, KNOWN)
    since = len(chat.steps)
    chat.answers(BABBLE, 40, 7)
    assert chat.speed(since) >= 0.97
    late = chat.shapes(len(chat.steps) - 600)
    assert sum(shape is not None for shape in late) <= 30


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3])
@pytest.mark.parametrize("beginning", [3, 8])
def test_what_was_recorded_is_not_given_up_for_a_bad_beginning(curve: str, beginning: int) -> None:
    costs = costs_of(curve)
    chat = Chat(costs, Planner(costs, recorded=recorded_of(KNOWN)), noise=0.03)
    chat.answers(BABBLE, beginning)
    since = len(chat.steps)
    chat.answers(KNOWN, 20, 3)
    assert chat.speed(since) >= 0.9 * best_speed(KNOWN, costs)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
def test_after_a_choice_was_left_the_next_draft_is_a_small_one(curve: str, recorded: bool) -> None:
    """The account has just enough for it; for a large one the text would wait a hundred tokens."""
    chat, costs = good_chat(curve, KNOWN, recorded=recorded), costs_of(curve)
    since = len(chat.steps)
    chat.answers(BABBLE, 1, 5)
    shapes = chat.shapes(since)
    plain = shapes.index(None)
    assert plain > 2, "the choice was drafted until then"
    probes = [shape for shape in shapes[plain:] if shape is not None]
    assert probes
    # By what steps took, which is not quite what they cost.
    assert costs.step_seconds(probes[0], 0) <= 1.1 * SMALL_PROBE_PRICE


class Number:
    """Something learnt."""

    def __init__(self) -> None:
        self.value = 0

    def save(self) -> int:
        return self.value

    def restore(self, saved: int) -> None:
        self.value = saved


def passed_over(chance: SecondChance) -> int:
    """Answers before the next one that is given a chance."""
    count = 0
    while not chance.due():
        count += 1
        assert count <= MOST_PASSED_OVER
    return count


def test_chances_in_vain_become_rarer_up_to_a_limit() -> None:
    learnt = Number()
    chance = SecondChance(learnt)
    chance.fail()
    assert not chance.due(), "nothing ever paid"
    learnt.value = 5
    chance.keep()
    waits = []
    for _ in range(8):
        learnt.value = 9
        chance.fail()
        waits.append(passed_over(chance))
        chance.take()
        assert learnt.value == 5
    assert waits == [0, 1, 3, 7, 15, 16, 16, 16]
    chance.keep()
    chance.fail()
    assert passed_over(chance) == 0


def test_what_pays_meanwhile_is_taken_up_again_where_a_chance_fails() -> None:
    learnt = Number()
    chance = SecondChance(learnt)
    learnt.value = 5
    chance.keep()
    learnt.value = 9
    chance.fail()
    learnt.value = 3  # shorter drafts pay
    chance.keep()
    assert chance.failed, "what paid before is not given up for it"
    assert chance.due()
    chance.take()
    assert (learnt.value, chance.failed) == (5, False)
    learnt.value = 9
    chance.fail()
    assert learnt.value == 3
    for _ in range(FAILURES_TO_CHANGE - 2):
        chance.keep()
        assert chance.failed
        chance.take()
        chance.fail()
    chance.keep()
    assert not chance.failed, "the texts have changed"
    chance.fail()
    assert chance.due()
    chance.take()
    assert learnt.value == 3


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3])
def test_an_odd_answer_that_short_drafts_pay_on_does_not_shorten_the_next(curve: str) -> None:
    costs, odd = costs_of(curve), (0.97, 0.55, 0.0)
    for seed in range(4):
        chat = Chat(costs, Planner(costs, recorded=recorded_of(KNOWN)), noise=0.03)
        chat.answers(KNOWN, 4, seed)
        chat.answers(odd, 3, seed + 10)
        since = len(chat.steps)
        chat.answers(KNOWN, 12, seed + 20)
        assert worth(chat, since, KNOWN, costs) > 0.85 * best_speed(KNOWN, costs)


def test_a_second_chance_is_paid_by_what_drafts_have_earned() -> None:
    poor, rich = Allowance(), Allowance()
    for account in (poor, rich):
        account.take_drafted(START, SAVED)
        assert account.balance == SAVED
    for _ in range(3):
        rich.take_drafted(1.0, 4.0)
    for account in (poor, rich):
        account.take_drafted(100.0, 1.0)
        assert account.balance == LEAST
    assert not poor.afford_second_chance()
    times = 0
    while rich.afford_second_chance():
        assert rich.balance == SECOND_CHANCE or times
        assert rich.balance >= LEAST_CHANCE
        rich.take_drafted(100.0, 1.0)
        times += 1
    assert 1 <= times <= 9, "no more than was earned"
