"""One answer, from the question to the line that sums it up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from .interrupt import stoppable
from .planning import plan

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse
    from .frontend import FrontEnd
    from .session import Session


def answer_question(session: Session, front: FrontEnd, question: str) -> None:
    """Answer one question, as far as the person lets it go."""
    show_answer(session, front, session.ask(question))


def show_answer(
    session: Session, front: FrontEnd, responses: Generator[GenerationResponse, None, None]
) -> None:
    """Show an answer while it comes, as far as the person lets it go, and sum it up."""
    before = session.totals.answers
    try:
        plan(session, front, wanted=session.drafts)
        with closing(responses), closing(stoppable(responses)) as shown:
            front.stream(session, shown)
    except KeyboardInterrupt:
        if session.totals.answers == before:
            if not front.attended:
                raise
            front.say("Stopped before the first word; the question was taken back.")
            return
    if session.last is not None:
        front.conclude(session, session.last)
        if session.last.interrupted and not front.attended:
            raise KeyboardInterrupt
