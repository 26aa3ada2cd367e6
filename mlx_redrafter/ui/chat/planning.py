"""Who plans the chat's drafts, made as soon as something is to be drafted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .frontend import FrontEnd
    from .session import Session


def plan(session: Session, front: FrontEnd, *, wanted: bool) -> None:
    """Give the session who plans its drafts, measuring the machine where that was never done.

    Args:
        session: Keeps the planner that it has.
        front: Shows that the machine is measured.
        wanted: Whether something is to be drafted; else nothing is measured.
    """
    if not wanted or session.planner is not None or session.model.leader is not None:
        return  # other processes that share the model only follow by then, and all have to measure
    from ...planning.planner_for import planner_for
    from ..theme import CALIBRATING

    with front.progress(f"{CALIBRATING} ...") as progress:
        again = session.recalibrate
        session.plan_with(planner_for(session.model, recalibrate=again, progress=progress))
