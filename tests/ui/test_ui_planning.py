"""Who plans drafts, made when something is to be drafted and not before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import make_bundle
from chat_fakes import RecordingFrontEnd, make_session
from planning_machines import CPU, costs_of

from mlx_redrafter.planning import cost_store
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.ui.chat.main import begin_planning, converse, load_session
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bare") / "bare", drafter=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the machine was measured with, each time."""
    seen: list[dict[str, Any]] = []

    def load_costs(_model: object, **options: Any) -> Any:
        seen.append(options)
        return costs_of(CPU)

    monkeypatch.setattr(cost_store, "load_costs", load_costs)
    return seen


def opened(path: Path, *, recalibrate: bool = False, **settings: Any) -> Session:
    chosen = ChatSettings(max_tokens=4, **settings)
    session = load_session(str(path), chosen, recalibrate=recalibrate)
    options: Any = SimpleNamespace(prompt=None)
    begin_planning(session, RecordingFrontEnd(), options)
    return session


def say(session: Session, *lines: str) -> RecordingFrontEnd:
    front = RecordingFrontEnd(lines)
    converse(session, front, measured=False)
    return front


def test_the_machine_is_measured_once_something_is_drafted(
    bundle: Path, measured: list[dict[str, Any]]
) -> None:
    session = opened(bundle, draft=False, recalibrate=True)
    say(session, "hello", "/draft on", "/beam")
    assert not measured
    assert session.planner is None
    say(session, "hello", "/draft off", "/draft on", "again")
    assert isinstance(session.planner, Planner)
    assert session.beam_planner is session.planner
    (options,) = measured
    assert options["recalibrate"] is True


def test_copies_that_are_switched_on_are_planned(
    bare: Path, measured: list[dict[str, Any]]
) -> None:
    session = opened(bare, copy=False)
    say(session, "hello")
    assert not measured
    say(session, "/copy on", "/retry")
    assert isinstance(session.planner, HeadlessPlanner)
    assert session.beam_planner is None
    assert len(measured) == 1


def test_a_comparison_drafts_as_planned(bundle: Path, measured: list[dict[str, Any]]) -> None:
    session = opened(bundle, draft=False)
    assert say(session, "/compare").complaints
    assert not measured
    assert say(session, "hello", "/compare").shown
    assert session.planner is not None
    assert len(measured) == 1


def test_a_measurement_that_is_stopped_takes_the_question_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(bundle, draft=False)

    def stopped(_model: object, **_options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cost_store, "load_costs", stopped)
    front = say(session, "/draft on", "hello")
    assert "the question was taken back" in front.said[-1]
    assert session.messages == []


def test_ranks_that_only_follow_are_not_asked_to_measure(measured: list[dict[str, Any]]) -> None:
    session = make_session(settings=ChatSettings(draft=False))
    model: Any = session.model
    model.head = model.leader = object()
    front = say(session, "/draft on", "hello")
    assert front.answers
    assert not front.complaints
    assert not measured


@pytest.mark.parametrize("prompt", [None, "hello"])
def test_several_processes_measure_before_a_conversation_that_may_draft_later(
    prompt: str | None, bundle: Path, measured: list[dict[str, Any]]
) -> None:
    session = load_session(str(bundle), ChatSettings(draft=False))
    shared: Any = session.model
    shared.ranks = object()
    options: Any = SimpleNamespace(prompt=prompt)
    begin_planning(session, RecordingFrontEnd(), options)
    assert len(measured) == (prompt is None)


def test_beams_that_will_be_planned_are_told_so_before_there_is_a_planner(
    bundle: Path, measured: list[dict[str, Any]]
) -> None:
    session = opened(bundle, draft=False)
    planned = "Drafts: beam planned by measurement."
    front = say(session, "/beam 2 3", "/beam auto", "/draft on", "/beam auto")
    assert front.said == ["Drafts: beam 2 × 3.", planned, "Drafting is on.", planned]
    assert not measured
    say(session, "hello")
    assert say(session, "/draft off", "/beam auto").said[-1] == planned


def test_beams_that_nobody_will_plan_are_told_as_they_are(bare: Path) -> None:
    session = make_session()
    model: Any = session.model
    model.head = model.leader = object()  # other processes only follow by now
    assert say(session, "/beam auto").said[-1] == "Drafts: beam 2 × 2."
    alone = opened(bare, copy=False)
    assert say(alone, "/beam auto").said[-1] == "Drafts: no beams, since there is no drafter."
