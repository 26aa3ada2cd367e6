from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.reports import MOST_HELD, StepReports
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.tree import HostTree

PLAIN = StepRecord(HostTree((1,), (-1,), (0.0,)), (2,), (0,), frozenset())
PAIR = StepRecord(HostTree((1, 2), (-1, 0), (0.0, -0.1)), (2, 3), (0, 1), frozenset())
SHAPE = BeamShape(1, 1)


@dataclass
class Listener:
    """A planner that notes what it hears."""

    patience: int = 0
    heard: list[ObservedStep] = field(default_factory=list)

    @property
    def plan(self) -> StepPlan:
        return StepPlan(patience=self.patience)

    def observe(self, step: ObservedStep) -> None:
        self.heard.append(step)


def quiet(seconds: float = 1.0, context: int = 10, **changed: Any) -> ObservedStep:
    """A plain step in the middle of a row."""
    parts = {"early": True, "overlapped": True, **changed}
    return ObservedStep(None, [PLAIN], seconds, context, **parts)


def test_plain_steps_are_told_together_as_far_as_the_planner_has_patience() -> None:
    reports, planner = StepReports(), Listener(patience=3)
    for place in range(7):
        reports.tell(planner, quiet(float(place), 10 + place))
    assert [step.repeats for step in planner.heard] == [1, 3, 3]
    assert [step.seconds for step in planner.heard] == [0.0, 2.0, 5.0]
    assert [step.context for step in planner.heard] == [10, 13, 16]
    assert [step.made for step in planner.heard] == [1.0, 3.0, 3.0]


def test_no_more_are_held_back_than_the_machine_can_be_followed_with() -> None:
    reports, planner = StepReports(), Listener(patience=1000)
    for _ in range(1 + 2 * MOST_HELD):
        reports.tell(planner, quiet())
    assert [step.repeats for step in planner.heard] == [1, MOST_HELD, MOST_HELD]


@pytest.mark.parametrize(
    "other",
    [
        ObservedStep(SHAPE, [PAIR], 9.0, 20),
        ObservedStep(None, [PAIR], 9.0, 20),  # copies
        quiet(9.0, early=False),
        quiet(9.0, overlapped=False),
        quiet(9.0, next_shape=SHAPE),
    ],
)
def test_any_other_step_is_told_at_once_after_what_was_held(other: ObservedStep) -> None:
    reports, planner = StepReports(), Listener(patience=100)
    for _ in range(4):
        reports.tell(planner, quiet())
    reports.tell(planner, other)
    assert [step.repeats for step in planner.heard] == [1, 3, 1]
    assert planner.heard[-1] is other


def test_what_was_held_for_one_planner_is_not_told_to_another() -> None:
    reports, first, second = StepReports(), Listener(patience=100), Listener()
    for _ in range(3):
        reports.tell(first, quiet())
    reports.tell(second, quiet(5.0))
    assert [step.repeats for step in first.heard] == [1, 2]
    assert [step.seconds for step in second.heard] == [5.0]


def test_a_planner_is_not_asked_while_it_has_patience_left() -> None:
    reports, planner = StepReports(), Listener(patience=3)
    assert not reports.rests, "it was never asked"
    rests = []
    for _ in range(7):
        reports.tell(planner, quiet())
        rests.append(reports.rests)
    assert rests == [True] * 7, "it said so after the first, the fourth and the seventh"
    planner.patience = 0
    for _ in range(3):
        reports.tell(planner, quiet())
    assert not reports.rests


def test_of_the_step_after_the_next_it_is_known_one_step_less_long() -> None:
    reports, planner = StepReports(), Listener(patience=3)
    reports.begin(planner)
    known = [(reports.rests, reports.rests_on)]
    for _ in range(2):
        reports.tell(planner, quiet())
        known.append((reports.rests, reports.rests_on))
    assert known == [(True, True), (True, True), (True, False)]


def test_a_planner_is_asked_again_when_other_texts_take_part() -> None:
    reports, planner = StepReports(), Listener(patience=100)
    for _ in range(3):
        reports.tell(planner, quiet())
    assert reports.rests
    reports.wake()
    assert not reports.rests
    reports.tell(planner, quiet())
    assert [step.repeats for step in planner.heard] == [1, 3], "nothing was lost"
    assert reports.rests
