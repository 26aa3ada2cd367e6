"""Who plans the chat's drafts, made as soon as something is to be drafted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .frontend import FrontEnd
    from .session import Session


def beams_are_planned(session: Session) -> bool:
    """Whether a planner chooses the drafter's beams, or will as soon as something is drafted."""
    model = session.model
    there = session.planner is not None or (model.head is not None and model.leader is None)
    return there and not session.settings.names_beam


def plan(session: Session, front: FrontEnd, *, wanted: bool) -> None:
    """Give the session who plans its drafts, measuring the machine where that was never done.

    Args:
        session: Keeps the planner that it has.
        front: Shows that the machine is measured.
        wanted: Whether something is to be drafted; else nothing is measured.
    """
    model = session.model
    copies_only = model.drafter is None and session.facts.copies
    if not wanted or session.shape_planner is not None:
        return
    if model.leader is not None or not (model.head is not None or copies_only):
        return  # other processes that share the model only follow by then, and all have to measure
    from ...planning.cost_store import load_costs, measure_there
    from ...planning.headless_planner import HeadlessPlanner
    from ...planning.planner import Planner
    from ..theme import CALIBRATING

    again = session.recalibrate
    with front.progress(f"{CALIBRATING} ...") as progress:
        if model.head is not None:
            session.planner = Planner.for_model(model, recalibrate=again, progress=progress)
        else:
            costs = load_costs(model, recalibrate=again, progress=progress)
            session.headless = HeadlessPlanner(lambda: costs, partial(measure_there, model))
