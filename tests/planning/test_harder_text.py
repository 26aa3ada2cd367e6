"""A text that is much harder to guess than all that is known of drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_machines import (
    BABBLE,
    CPU,
    KNOWN,
    M1,
    M3,
    OPENBLAS,
    PLAIN,
    REAL,
    Chat,
    Text,
    best_speed,
    costs_of,
)

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.acceptance import AcceptanceModel
from mlx_redrafter.planning.allowance import Allowance
from mlx_redrafter.planning.beginnings import Beginnings
from mlx_redrafter.planning.forecast import TreeMemory
from mlx_redrafter.planning.harder_text import EVIDENCE, HarderText
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.tree import HostTree

CHAIN = BeamShape(1, 4)
# As a real head's drafts are in an answer that it was not trained on.
WEAK = (0.4, 0.12, 0.1)


def chain(accepted: int, length: int = 4) -> StepRecord:
    """A chain of which so many tokens were accepted."""
    tree = HostTree((0,) * (1 + length), tuple(range(-1, length)), (-0.01,) * (1 + length))
    choices = (*(0,) * accepted, *(9,) * (1 + length - accepted))
    return StepRecord(tree, choices, tuple(range(1 + accepted)))


def drafts(text: HarderText, accepted: int, forecast: float, verified: int = 4) -> int:
    """Drafts that go alike until the text is harder; 0 where it is not."""
    for count in range(1, 100):
        if text.take_draft(CHAIN, chain(accepted), verified, forecast):
            return count
    return 0


def test_drafts_that_fail_where_all_were_accepted_tell_it_soon() -> None:
    assert 2 <= drafts(HarderText(), 0, 3.9) <= 4
    assert 2 <= drafts(HarderText(), 1, 3.9) <= 8
    assert drafts(HarderText(), 0, 1.0) > 8, "some fail in any text"


def test_drafts_that_go_as_expected_tell_nothing() -> None:
    assert drafts(HarderText(), 4, 3.9) == 0
    assert drafts(HarderText(), 1, 1.0) == 0
    assert drafts(HarderText(), 0, 3.9, verified=0) == 0, "nothing of them was verified"


def test_only_drafts_since_the_change_are_remembered() -> None:
    text = HarderText()
    for _ in range(10):
        text.take_draft(CHAIN, chain(4), 4, 3.9)
        assert not text.since
        assert not text.suspected
    count = drafts(text, 0, 3.9)
    assert [record.accepted for _, record in text.since] == [0] * count
    assert text.suspected
    text.forget()
    assert not text.since
    assert not text.suspected


def test_what_the_end_of_a_text_cut_is_not_remembered() -> None:
    memory = TreeMemory()
    memory.add_records([replace(chain(2, 2), cut=True), chain(2, 2), chain(4)], CHAIN)
    assert [len(one.tree.tokens) - 1 for one in memory.trees] == [2, 4]
    memory.begin_again([(CHAIN, replace(chain(1, 1), cut=True)), (CHAIN, chain(3))])
    assert [len(one.tree.tokens) - 1 for one in memory.trees] == [4]


def test_a_probe_is_judged_by_what_was_forecast_last() -> None:
    text = HarderText()
    text.take_draft(CHAIN, chain(4), 4, 3.9)
    count = next(n for n in range(1, 20) if text.take_draft(CHAIN, chain(0), 4, None))
    assert count == drafts(HarderText(), 0, 3.9)


def test_what_is_known_then_is_what_its_drafts_have_shown() -> None:
    acceptance, memory = AcceptanceModel(), TreeMemory()
    for _ in range(100):
        acceptance.observe(chain(4))
        memory.add(chain(4).tree, CHAIN)
    before = acceptance.chances.max()
    beginnings = Beginnings(acceptance, memory)
    count = 1
    while not beginnings.take_draft([chain(0)], CHAIN, 3.9):
        count += 1
    assert count <= 4
    assert len(memory.trees) == count
    kinds = acceptance.chances
    assert before > 0.9
    assert kinds[0] < 0.75 * before
    assert not beginnings.harder.since


def test_where_drafts_fail_altogether_suspicion_ends_with_them() -> None:
    beginnings = Beginnings(AcceptanceModel(), TreeMemory())
    beginnings.take_draft([chain(0)], CHAIN, 3.9)
    assert beginnings.harder.since
    beginnings.fail()
    assert not beginnings.harder.since
    assert beginnings.second_chance.failed


def test_a_second_chance_begins_without_suspicion() -> None:
    account = Allowance()
    beginnings = Beginnings(AcceptanceModel(), TreeMemory())
    beginnings.begin(2.0, 60.0, account)
    beginnings.fail()
    beginnings.take_draft([chain(0)], CHAIN, 3.9)
    assert beginnings.harder.since
    assert beginnings.begin(0.0, 60.0, account), "a chance is given"
    assert not beginnings.harder.since


def test_little_evidence_changes_nothing() -> None:
    acceptance, memory = AcceptanceModel(), TreeMemory()
    memory.add(chain(4).tree, CHAIN)
    beginnings = Beginnings(acceptance, memory)
    assert not beginnings.take_draft([chain(0)], CHAIN, 3.9)
    assert 0 < max(beginnings.harder._evidence) < EVIDENCE
    assert len(memory.trees) == 1


@pytest.mark.parametrize("easy", [1, 3])
@pytest.mark.parametrize("kind", [WEAK, BABBLE, REAL], ids=["weak", "babble", "real"])
@pytest.mark.parametrize("curve", [CPU, OPENBLAS, M3, M1])
def test_after_easy_answers_alone_a_harder_one_is_drafted_as_it_deserves(
    curve: str, kind: tuple[float, float, float], easy: int
) -> None:
    costs = costs_of(curve)
    best = max(1.0 / costs.plain[0], best_speed(kind, costs))
    speeds = []
    for seed in range(4):
        chat = Chat(costs, Planner(costs, watches=True), noise=0.03)
        for number in range(easy):
            chat.answer(Text(*KNOWN, seed=100 * seed + number), 250)
        since = len(chat.steps)
        chat.answer(Text(*kind, seed=7000 + 100 * seed), 60)
        speeds.append(chat.speed(since) / best)
    # Chains that nothing was accepted of, until they had lost what had been earned: 0.61 to 0.85.
    assert sum(speeds) / len(speeds) >= 0.75
    chat.answers(kind, 2, 5)
    since = len(chat.steps)
    chat.answers(kind, 8, 6)
    assert chat.speed(since) >= 0.8 * best


def test_no_larger_shape_is_tried_while_drafts_fail() -> None:
    costs = costs_of(CPU)
    chat = Chat(costs, Planner(costs), noise=0.03).answers(KNOWN, 2)
    planner = chat.planner
    assert planner
    planner._wide._steps = 0
    planner._beginnings.harder._evidence = [EVIDENCE, 0.0]
    planner._wide.forget()
    planner.observe(plain_step())
    assert planner._wide.due is None
    planner._beginnings.harder.forget()
    planner._wide._steps = 0
    planner.observe(plain_step())
    assert planner._wide.due is not None


def plain_step() -> ObservedStep:
    """A plain step."""
    return ObservedStep(None, [PLAIN], 1.0, 10, early=False, overlapped=False)
