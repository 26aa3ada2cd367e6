"""Which held-out questions were held out of all runs that made a drafter, not of the last alone.

A run that goes on from a drafter evaluates what that one may have been taught. So the card of every
drafter has the marks of what it was not taught, and a run that goes on from it holds these out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from ..text.loading import resolve_path
from .data import Record
from .held_out import Note, is_marked, marks_of
from .record import CARD_FILE

MARKS = "held_out_questions"  # of a card


def held_out_before(start_from: str | None) -> frozenset[str]:
    """Marks of what a drafter was never taught, by its card; none where it does not say.

    Args:
        start_from: The drafter's directory or Hub repo; None for a new one.

    Raises:
        RedrafterError: If there is no such drafter.
    """
    if start_from is None:
        return frozenset()
    try:
        card = json.loads((Path(resolve_path(start_from)) / CARD_FILE).read_text("utf-8"))
        return frozenset(mark for mark in card[MARKS] if isinstance(mark, str))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def unseen_marks(
    records: Sequence[Record],
    held: Sequence[Record],
    start_from: str | None,
    before: Collection[str],
    note: Note,
) -> list[str]:
    """Marks of held-out questions that were held out of all runs before as well.

    Args:
        records: Learned from.
        held: Evaluated on.
        start_from: The drafter that is gone on from; None for a new one.
        before: See :func:`held_out_before`.
        note: Told in a sentence how many others there are.
    """
    if start_from is None:
        return marks_of(held, records)
    unseen = [record for record in held if is_marked(record, before)]
    if len(unseen) < len(held):
        note(
            f"{start_from} may have learned from {len(held) - len(unseen):,} of the {len(held):,} "
            "records that are held out now: figures of these are not of unseen text."
        )
    return marks_of(unseen, records)
