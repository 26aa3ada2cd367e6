"""An easy answer among ordinary ones, of which much longer drafts are accepted."""

from __future__ import annotations

import pytest
from planning_machines import (
    CPU,
    KNOWN,
    M1,
    M3,
    OPENBLAS,
    REAL,
    Chat,
    Text,
    best_speed,
    costs_of,
    mean_tokens,
    recorded_of,
)

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.beginnings import Beginnings
from mlx_redrafter.planning.depth_chance import LARGEST, LEAST, depth_chance
from mlx_redrafter.planning.easy_answers import (
    DOUBLINGS,
    EXPECTED_AFTER,
    FEW_DRAFTS,
    MORE,
    ORDINARY_AFTER,
    EasyAnswers,
)
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.wide_probes import WHOLE_RUNS, WideProbes
from mlx_redrafter.tree import HostTree

# Between one that the drafter knows and one of a real model.
MIDDLING = (0.6, 0.55, 0.2)


class Speed:
    """Tokens and seconds of some answers of a chat."""

    def __init__(self, chat: Chat):
        self._chat, self.tokens, self.seconds = chat, 0, 0.0

    def answer(self, text: Text, tokens: int) -> None:
        since = len(self._chat.steps)
        self._chat.answer(text, tokens)
        self.tokens += sum(made for _, made, _ in self._chat.steps[since:])
        self.seconds += sum(taken for _, _, taken in self._chat.steps[since:])

    def over(self, best: float) -> float:
        return self.tokens / self.seconds / best


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
@pytest.mark.parametrize("kind", [REAL, MIDDLING])
def test_an_easy_answer_slows_down_neither_the_next_nor_the_next_easy_one(
    curve: str, kind: tuple[float, float, float], recorded: bool
) -> None:
    costs = costs_of(curve)
    planner = Planner(costs, recorded=recorded_of(kind) if recorded else None)
    chat = Chat(costs, planner, noise=0.03).answers(kind, 8)
    easy, ordinary = Speed(chat), Speed(chat)
    for number in range(20):
        easy.answer(Text(*KNOWN, seed=5000 + number), 200)
        ordinary.answer(Text(*kind, seed=9000 + number), 60)
    # Long drafts that fail, and plain steps after them, made 0.5 to 0.75 of it.
    assert ordinary.over(best_speed(kind, costs)) >= 0.85
    assert easy.over(best_speed(KNOWN, costs)) >= 0.8


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
def test_texts_that_become_easy_for_good_are_drafted_as_such(curve: str) -> None:
    costs = costs_of(curve)
    chat = Chat(costs, Planner(costs), noise=0.03).answers(REAL, 8).answers(KNOWN, 3, 5)
    since = len(chat.steps)
    chat.answers(KNOWN, 20, 6)
    assert chat.speed(since) >= 0.93 * best_speed(KNOWN, costs)


@pytest.mark.parametrize("curve", [OPENBLAS, CPU, M3, M1])
def test_after_several_easy_answers_an_ordinary_one_is_drafted_as_before_them(curve: str) -> None:
    costs = costs_of(curve)
    chat = Chat(costs, Planner(costs), noise=0.03).answers(REAL, 8)
    ordinary = Speed(chat)
    for number in range(8):
        chat.answers(KNOWN, 4, 100 + number)
        ordinary.answer(Text(*REAL, seed=9000 + number), 60)
        chat.answers(REAL, 2, 200 + number)
    assert ordinary.over(best_speed(REAL, costs)) >= 0.8


class Number:
    """Something learnt."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def save(self) -> int:
        return self.value

    def restore(self, saved: int) -> None:
        self.value = saved

    def begin_again(self, drafts: object) -> None:
        self.value = 0


ORDINARY, EASY = 1, 2


def after_an_easy_answer(tokens: float = 2.0) -> tuple[EasyAnswers, Number]:
    """Ordinary again."""
    learnt = Number(ORDINARY)
    answers = EasyAnswers(learnt)
    assert not answers.begin(tokens)
    answers.begun(tokens)
    learnt.value = EASY
    assert answers.begin(MORE * tokens)
    answers.begun(tokens)
    assert learnt.value == ORDINARY
    return answers, learnt


def test_an_answer_after_one_that_was_a_little_easier_begins_as_that_ended() -> None:
    learnt = Number(ORDINARY)
    answers = EasyAnswers(learnt)
    answers.begun(2.0)
    learnt.value = EASY
    assert not answers.begin(MORE * 2.0 - 0.1)
    assert learnt.value == EASY


def test_an_answer_before_which_nothing_was_drafted_was_not_easy() -> None:
    learnt = Number(ORDINARY)
    answers = EasyAnswers(learnt)
    answers.begun(0.0)
    learnt.value = EASY
    assert not answers.begin(8.0)


def drafts(answers: EasyAnswers, accepted: int, forecast: float, length: int = 4) -> int:
    """Drafts that go alike until something else is known."""
    for count in range(1, 100):
        if answers.take_draft(accepted, length, length, forecast):
            return count
    return 0


def test_drafts_tell_which_kind_a_text_is_of() -> None:
    answers, learnt = after_an_easy_answer()
    assert drafts(answers, 1, 1.0) == 0, "as expected"
    assert learnt.value == ORDINARY
    assert 1 < drafts(answers, 4, 1.0) <= 3
    assert learnt.value == EASY
    assert drafts(answers, 12, 10.0, 12) == 0, "as expected"
    assert 2 < drafts(answers, 0, 10.0, 12) <= 5, "some drafts fail in any text"
    assert learnt.value == ORDINARY


def test_at_the_beginning_of_an_easy_answer_less_tells_that_it_is_not() -> None:
    answers, learnt = after_an_easy_answer()
    drafts(answers, 4, 1.0)
    assert drafts(answers, 0, 10.0, 12) == 2
    assert learnt.value == ORDINARY


def test_what_was_learnt_since_a_text_became_easy_does_not_count_for_ordinary_ones() -> None:
    answers, learnt = after_an_easy_answer()
    learnt.value = 7  # half of it is of the easy text
    drafts(answers, 4, 1.0)
    drafts(answers, 0, 10.0, 12)
    assert learnt.value == ORDINARY


def test_a_probe_that_is_accepted_far_tells_it_as_well() -> None:
    answers, learnt = after_an_easy_answer()
    answers.take_draft(0, 4, 4, 1.0)
    assert answers.take_draft(12, 12, 12, None)
    assert learnt.value == EASY


def test_of_a_draft_only_what_was_verified_tells_anything() -> None:
    answers, learnt = after_an_easy_answer()
    drafts(answers, 4, 1.0)
    for _ in range(20):
        assert not answers.take_draft(2, 2, 12, 10.0)
        assert not answers.take_draft(0, 0, 12, 10.0)
    assert learnt.value == EASY


def test_copies_tell_nothing_of_drafts() -> None:
    beginnings, learnt = Beginnings(Number(ORDINARY)), []
    beginnings.easy.take_draft = lambda *given: bool(learnt.append(given))  # type: ignore[method-assign]
    tree = HostTree((0, 1, 2, 1), (-1, 0, 1, 0), (0.0,) * 4)
    record = StepRecord(tree, (1, 2, 3, 9), (0, 1, 2), frozenset((1, 2)))
    beginnings.take_draft([record], BeamShape(1, 4), 1.0)
    assert learnt == [(0.0, 1, 4, 1.0)]


def test_more_is_needed_after_a_text_that_was_not_easy_after_all() -> None:
    answers, _ = after_an_easy_answer()
    needed = []
    for _ in range(2 + DOUBLINGS):
        needed.append(drafts(answers, 4, 1.0))
        assert drafts(answers, 0, 10.0, 12) <= FEW_DRAFTS
    assert needed[0] < needed[1] < needed[2] == needed[3]
    for _ in range(DOUBLINGS):
        answers.begun(2.0)
    assert drafts(answers, 4, 1.0) == needed[0]


def test_after_several_easy_answers_the_next_one_begins_as_they_ended() -> None:
    answers, learnt = after_an_easy_answer()
    drafts(answers, 4, 1.0)
    for _ in range(ORDINARY_AFTER - EXPECTED_AFTER):
        assert not answers.begin(8.0)
        answers.begun(8.0)
        assert learnt.value == EASY
    assert answers.go_back(), "for so long what was before is known"
    assert learnt.value == ORDINARY
    assert not answers.go_back()


def test_after_many_easy_answers_that_is_what_is_ordinary() -> None:
    answers, learnt = after_an_easy_answer()
    drafts(answers, 4, 1.0)
    for _ in range(ORDINARY_AFTER):
        answers.begin(8.0)
        answers.begun(8.0)
    assert not answers.go_back()
    assert learnt.value == EASY


@pytest.mark.parametrize(("length", "accepted"), [(1, 0.5), (4, 1.5), (12, 8.0)])
def test_the_chance_of_a_depth_explains_what_is_accepted(length: int, accepted: float) -> None:
    chance = depth_chance(length, accepted)
    assert sum(chance**depth for depth in range(1, 1 + length)) == pytest.approx(accepted, rel=0.1)


def test_the_chance_of_a_depth_rules_nothing_out() -> None:
    assert depth_chance(4, 0.0) == pytest.approx(LEAST, abs=0.01)
    assert depth_chance(4, 4.0) == pytest.approx(LARGEST, abs=0.01)


def test_a_run_of_whole_drafts_counts_as_soon_as_it_is_unlikely() -> None:
    def runs_needed(forecast: float) -> int:
        wide = WideProbes(known=True)
        for _ in range(4):  # three in a row led to nothing longer, several times
            for _ in range(WHOLE_RUNS[1]):
                wide.take_draft(4, 4, 3.9)
            wide.take_probe(news=False, longer=False)
        for count in range(1, 100):
            wide.take_draft(4, 4, forecast)
            if wide._look_further:
                return count
        return 0

    assert runs_needed(1.0) == WHOLE_RUNS[0]
    assert WHOLE_RUNS[0] < runs_needed(2.3) < WHOLE_RUNS[1]
    assert runs_needed(3.9) == WHOLE_RUNS[1]


def test_a_simulated_easy_text_is_much_easier() -> None:
    assert mean_tokens(KNOWN, BeamShape(1, 12)) >= MORE * mean_tokens(REAL, BeamShape(3, 4, 7))
