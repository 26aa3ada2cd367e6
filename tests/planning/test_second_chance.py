"""An odd answer among ordinary ones: drafting begins again with the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_machines import (
    BABBLE,
    CPU,
    CURVES,
    FLAT,
    KNOWN,
    M1,
    M3,
    OPENBLAS,
    REAL,
    Chat,
    Text,
    best_speed,
    costs_of,
    recorded_of,
    worth,
)

from mlx_redrafter.engine.shape_planner import ObservedStep
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


def good_chat(curve: str, kind: Kind, *, recorded: bool = False, seed: int = 0) -> Chat:
    costs = costs_of(curve)
    planner = Planner(costs, recorded=recorded_of(kind) if recorded else None)
    return Chat(costs, planner, noise=0.03).answers(kind, 8, seed)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
@pytest.mark.parametrize("kind", [KNOWN, REAL])
def test_after_an_odd_answer_the_next_is_as_fast_as_before(
    curve: str, kind: Kind, recorded: bool
) -> None:
    tokens, seconds = 0, 0.0
    for seed in (0, 40, 80):
        chat = good_chat(curve, kind, recorded=recorded, seed=seed)
        for number in range(8):
            chat.answers(BABBLE, 1, 100 + number)
            if kind is KNOWN:
                assert chat.planner is not None
                assert chat.planner.state is not PlannerState.DRAFTING
            since = len(chat.steps)
            chat.answers(kind, 1, 200 + number)
            tokens += sum(made for _, made, _ in chat.steps[since:])
            seconds += sum(taken for _, _, taken in chat.steps[since:])
    # A draft of a real text makes two tokens or none: so few answers say less of those.
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


@pytest.mark.parametrize("level", [0.002, 0.01])
@pytest.mark.parametrize("tokens", [3, 8])
def test_chances_become_rare_in_short_answers_as_well(level: float, tokens: int) -> None:
    """A chance that outlasts an answer or two has not paid for that."""
    costs = costs_of(FLAT, level=level)
    chat = Chat(costs, Planner(costs), noise=0.03).answers(KNOWN, 8)
    since = len(chat.steps)
    for number in range(3000 // tokens):
        chat.answer(Text(*BABBLE, seed=number), tokens)
    assert chat.speed(since) >= 0.96


def chances_of(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each chance that is given to the drafts of a planner."""
    given: list[int] = []
    take = planner._beginnings.second_chance.take
    monkeypatch.setattr(
        planner._beginnings.second_chance, "take", lambda account: (given.append(1), take(account))
    )
    return given


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3])
def test_chances_become_rare_where_drafts_have_become_dear(
    curve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What paid before is not even drafted then: that is a failure, too."""
    chat = good_chat(curve, REAL)
    assert chat.planner is not None
    given = chances_of(chat.planner, monkeypatch)
    at = CURVES[curve]
    chat.truth = costs_of(lambda n: at(n) if n == 1 else 3.0 * at(n))
    chat.answers(REAL, 60, 3)
    assert 1 <= len(given) <= 8


def batches(
    planner: Planner, kind: Kind, count: int, sequences: int, first_seed: int, dear: float = 1.0
) -> None:
    """Answers that are decoded together, one batch after the other; each sequence begins."""
    for number in range(count):
        for _ in range(sequences):
            planner.begin()
        shared, made = planner.for_batch(sequences), 0.0
        seeds = range(first_seed + 100 * number, first_seed + 100 * number + sequences)
        texts = [Text(*kind, seed=seed) for seed in seeds]
        while made < 60:
            shape = shared.plan.shape
            step = ObservedStep(shape, [text.step(shape) for text in texts], 1.0, 64)
            seconds = shared.costs.step_seconds(shape, 64, kept=step.tokens, rejected=1.0)
            shared.observe(replace(step, seconds=seconds * (dear if shape else 1.0)))
            made += step.tokens


def test_chances_become_rare_in_batches_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that begin together say nothing of how drafts go between one and the next."""
    planner = Planner(costs_of(M3))
    batches(planner, KNOWN, 8, 4, 0)
    given = chances_of(planner.for_batch(4), monkeypatch)
    batches(planner, BABBLE, 100, 4, 10_000)
    assert 1 <= len(given) <= 12


def test_a_batch_size_that_is_not_used_takes_back_nothing_that_others_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner = Planner(costs_of(M3))
    batches(planner, KNOWN, 8, 4, 0)
    batches(planner, BABBLE, 1, 4, 10_000)
    unused = planner.for_batch(4)
    assert unused.choice is None
    unused._trials.allowance = Allowance(known=True)
    unused._trials.allowance.balance = LEAST
    planner.begin()  # the last answer of that size might be given a chance now
    unused._trials.allowance.balance = SECOND_CHANCE
    given = chances_of(unused, monkeypatch)
    Chat(planner.costs, planner, noise=0.03).answers(KNOWN, 30)
    assert not given


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
def test_after_a_choice_was_left_the_next_draft_is_a_small_one(
    curve: str, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account has just enough for it; for a large one the text would wait a hundred tokens."""
    chat, costs = good_chat(curve, KNOWN, recorded=recorded), costs_of(curve)
    planner, since, chosen = chat.planner, len(chat.steps), []
    assert planner is not None
    observe = planner.observe

    def noting(step: ObservedStep) -> None:
        observe(step)
        chosen.append(planner.choice is not None)

    monkeypatch.setattr(planner, "observe", noting)
    chat.answers(BABBLE, 1, 5)
    left = chosen.index(False)
    assert left >= 2, "the choice was drafted until then"
    probes = [shape for shape in chat.shapes(since)[left + 1 :] if shape is not None]
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

    def begin_again(self, drafts: object) -> None:
        self.value = 0


def passed_over(chance: SecondChance) -> int:
    """Answers before the next one that is given a chance."""
    count = 0
    while not chance.due(1.0):
        count += 1
        assert count <= MOST_PASSED_OVER
    return count


def test_chances_in_vain_become_rarer_up_to_a_limit() -> None:
    learnt = Number()
    chance = SecondChance(learnt)
    chance.fail()
    assert not chance.due(1.0), "nothing ever paid"
    learnt.value = 5
    chance.keep(0.0, 1.0)
    waits = []
    for _ in range(8):
        learnt.value = 9
        chance.fail()
        waits.append(passed_over(chance))
        chance.take(0.0)
        assert learnt.value == 5
    assert waits == [0, 1, 2, 4, 8, 16, 16, 16]
    chance.keep(0.0, 1.0)
    chance.fail()
    assert passed_over(chance) == 0


def test_a_chance_is_not_over_before_its_drafts_have_made_what_they_lost() -> None:
    for account, answers, wait in ((2.0, 0.0, 1), (1.9, 1.0, 1), (2.0, 1.0, 0)):
        chance = SecondChance(Number())
        chance.keep(8.0, 1.0)
        chance.fail()
        assert passed_over(chance) == 0
        chance.take(2.0)
        chance.keep(account, answers)
        chance.fail()
        assert passed_over(chance) == wait


def test_failures_at_one_temperature_say_nothing_of_another() -> None:
    chance = SecondChance(Number())
    chance.keep(8.0, 1.0)
    chance.sample_at(1.5)
    for wait in (0, 1, 2):
        chance.fail()
        assert passed_over(chance) == wait
        chance.take(2.0)
    chance.fail()
    chance.sample_at(1.0)
    assert chance.due(1.0)
    chance.take(2.0)
    chance.fail()
    chance.sample_at(1.48)
    assert passed_over(chance) == 4, "those are not forgotten"
    chance.sample_at(1.0)
    assert chance.due(1.0)


@pytest.mark.parametrize("recorded", [False, True])
def test_after_answers_at_a_high_temperature_others_are_drafted_at_once(recorded: bool) -> None:
    for seed in range(4):
        chat = good_chat(OPENBLAS, KNOWN, recorded=recorded, seed=seed)
        chat.temperature = 1.5
        chat.answers(BABBLE, 6, 50 + seed)
        assert chat.planner is not None
        assert chat.planner.choice is None
        chat.temperature = 1.0
        since = len(chat.steps)
        chat.answers(KNOWN, 1, 90 + seed)
        assert chat.speed(since) >= 0.6 * best_speed(KNOWN, chat.truth)  # 0.2 to 0.45 without


def test_a_first_chance_outlasts_one_draft_that_fails_where_drafts_are_dear() -> None:
    """One draft of fifteen costs four plain steps there, all that an account holds and more."""
    costs = costs_of(lambda n: 1.0 + 0.2 * (n - 1))
    chat = Chat(costs, Planner(costs, recorded=recorded_of(KNOWN)), noise=0.03)
    planner = chat.planner
    assert planner is not None

    def fail_once() -> None:
        shape = planner.plan.shape
        assert shape is not None
        record = Text(1e-9, 1e-9, 0.0).step(shape)
        assert record.accepted == 0
        planner.observe(ObservedStep(shape, [record], costs.step_seconds(shape, 0), 0))

    chat.answers(BABBLE, 1)
    assert planner.choice is None
    planner.begin()
    fail_once()
    assert planner.choice is not None
    for _ in range(3):
        if planner.choice is not None:
            fail_once()
    assert planner.choice is None, "but not many"


def test_short_answers_count_less_than_one_that_is_passed_over() -> None:
    chance = SecondChance(Number())
    chance.keep(8.0, 1.0)
    chance.fail()
    assert not chance.due(0.0), "others decode"
    assert chance.due(0.25)
    chance.take(2.0)
    chance.fail()
    assert [chance.due(0.25) for _ in range(5)] == [False, False, False, False, True]


def test_what_pays_meanwhile_is_taken_up_again_where_a_chance_fails() -> None:
    learnt = Number()
    chance = SecondChance(learnt)
    learnt.value = 5
    chance.keep(0.0, 1.0)
    learnt.value = 9
    chance.fail()
    learnt.value = 3  # shorter drafts pay
    chance.keep(0.0, 1.0)
    assert chance.failed, "what paid before is not given up for it"
    assert chance.due(1.0)
    chance.take(0.0)
    assert (learnt.value, chance.failed) == (5, False)
    learnt.value = 9
    chance.fail()
    assert learnt.value == 3
    for _ in range(FAILURES_TO_CHANGE - 2):
        chance.keep(0.0, 1.0)
        assert chance.failed
        chance.take(0.0)
        chance.fail()
    chance.keep(0.0, 1.0)
    assert not chance.failed, "the texts have changed"
    chance.fail()
    assert chance.due(1.0)
    chance.take(0.0)
    assert learnt.value == 3


def test_what_was_learnt_of_forecasts_meanwhile_is_taken_up_again_as_well() -> None:
    chat = good_chat(CPU, KNOWN)
    planner = chat.planner
    assert planner is not None
    before = planner._honesty.save()
    planner._beginnings.second_chance.take(0.0)
    assert planner._honesty.save() != before
    planner._choice.leave(0)
    assert planner._honesty.save() == before


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
