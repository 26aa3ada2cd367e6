"""Which records are evaluated on, so that nothing is learned from that asks the same.

Several answers to a question are common in data that a model wrote. A drafter that learned from one
of them knows much of the others, and its own answer to that question says little of other texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from ..errors import RedrafterError
from .data import Record, conversation, is_text

Note = Callable[[str], object]


def learned_from(record: Record, *, answers: bool = True) -> str:
    """What a record is learned from, the same for records that differ in other things only.

    Args:
        record: Of a known format.
        answers: Whether the assistant's turns are part of it; of texts everything is.
    """
    if is_text(record):
        return json.dumps({"text": record["text"]})
    messages = [
        [message.get(key) for key in ("role", "content", "tool_calls")]
        for message in conversation(record)
        if answers or message["role"] != "assistant"
    ]
    return json.dumps([messages, record.get("tools") or []], sort_keys=True, default=str)


def asked(record: Record, *, first: bool = False) -> str:
    """What a record asks, the same for records that differ in answers and white space only.

    Args:
        record: Of a known format; of a text all of it counts.
        first: Whether only what stands before the first answer to a user counts.
    """
    if is_text(record):
        return json.dumps({"text": _plain(record["text"])})
    messages = conversation(record)
    told = [
        [message["role"], _plain(message["content"]), message.get("tool_calls")]
        for message in messages[: _first_answer(messages) if first else None]
        if message["role"] != "assistant"
    ]
    return json.dumps([told, record.get("tools") or []], sort_keys=True, default=str)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _first_answer(messages: Sequence[Record]) -> int:
    """Place of the first answer to a user; a greeting before his words is none."""
    roles = [message["role"] for message in messages]
    start = roles.index("user") if "user" in roles else 0
    return roles.index("assistant", start) if "assistant" in roles[start:] else len(roles)


# Conversations that open alike are first held to ask the same: what is decoded to evaluate is the
# answer to the first question.
_WAYS: tuple[Callable[[Record], str], ...] = (partial(asked, first=True), asked)


def apart(
    records: Sequence[Record], held: Sequence[Record], note: Note | None = None
) -> list[Record]:
    """Those of the records that ask nothing that a held-out one asks.

    Conversations that open as a held-out one does are not among them, unless half of the records
    open so: such an opening is no question but a header, and all that is asked is compared.

    Args:
        records: To be learned from.
        held: To be evaluated on.
        note: Told in a sentence how many are left out, if any are.
    """
    kept: list[Record] = []
    for way in _WAYS:
        kept = _others(records, held, way)
        if _is_most(kept, records):
            break
    tell_left_out(len(records) - len(kept), note)
    return kept


def split(
    records: Sequence[Record],
    held_out: int,
    data: str | Path,
    *,
    answers: bool = True,
    before: Collection[str] = (),
    note: Note | None = None,
) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records); no question is among both.

    Of what would be learned from several times one is held out. Where a question has more answers
    than are to be held out the rest of them is in neither part. The questions alone say which are
    drawn: other runs with the same data, in whatever order and with whatever answers, hold out the
    same.

    Args:
        records: In a known format.
        held_out: Records to hold out; small data keeps nine tenths for training.
        data: Names them for the message.
        answers: Whether their own answers are learned from; if not, a question counts once.
        before: Marks of questions that are drawn first, see :func:`marks_of`.
        note: Told in a sentence how many are in neither part, if any are.

    Raises:
        RedrafterError: If there is a single record, or a single question.
    """
    different = {learned_from(record, answers=answers): record for record in records}
    if len(different) < 2 and len({learned_from(record) for record in records}) < 2:
        times = f" ({len(records)} times)" if len(records) > 1 else ""
        raise RedrafterError(
            f"{data} has a single record{times}, and one has to be held out to evaluate on: add "
            "more."
        )
    number = min(held_out, max(1, len(different) // 10))
    kept: list[Record] = []
    held: list[Record] = []
    for way in _WAYS:
        held = _drawn(different.values(), number, before, way)
        kept = _others(records, held, way)
        if _is_most(kept, records):
            break
    if not kept:
        raise RedrafterError(
            f"All {len(records):,} records of {data} ask the same, and a question that is not "
            "learned from has to be held out to evaluate on: add others."
        )
    tell_left_out(len(records) - len(kept) - len(held), note)
    return kept, held


def each_once(records: Sequence[Record]) -> list[Record]:
    """The first record of each question; the target would answer the others alike."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(learned_from(record, answers=False), record)
    return list(first.values())


def tell_left_out(number: int, note: Note | None) -> None:
    """Say how many records are neither learned from nor evaluated on, if there are any."""
    if number and note is not None:
        note(f"{number:,} of the records ask what held-out ones ask, and are left out.")


def redrawn(changed: Iterable[str]) -> str:
    """What to say beside names of what has changed, if it may be due to what is held out."""
    if not {"data", "held_out"} & set(changed):
        return ""
    return " (the files, or what this version holds out of them)"


def _others(
    records: Sequence[Record], held: Iterable[Record], way: Callable[[Record], str]
) -> list[Record]:
    known = {way(record) for record in held}
    return [record for record in records if way(record) not in known]


def _is_most(kept: Sequence[Record], records: Sequence[Record]) -> bool:
    return 2 * len(kept) > len(records)


def marks_of(held: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """Hashes of what held-out records ask, by which later runs know it, sorted.

    Args:
        held: Evaluated on.
        records: Learned from. What these ask as well has no mark.
    """
    learned = {way: {way(record) for record in records} for way in _WAYS}
    own = [[way(one) for way in _WAYS if way(one) not in learned[way]] for one in held]
    return sorted({_mark(questions[0]) for questions in own if questions})


def is_marked(record: Record, marks: Collection[str]) -> bool:
    """Whether what a record asks is among the marks."""
    return bool(marks) and any(_mark(way(record)) in marks for way in _WAYS)


def _mark(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def _drawn(
    records: Iterable[Record], number: int, before: Collection[str], way: Callable[[Record], str]
) -> list[Record]:
    """At most ``number`` of the records: all that ask what was drawn, question by question.

    A question with more records than there is still room for is passed over; where all have more,
    some of the rarest one's are taken.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(way(record), []).append(record)

    def late(question: str) -> tuple[bool, str]:
        return not any(is_marked(r, before) for r in groups[question]), _mark(question)

    order = sorted(groups, key=late)
    drawn, room = set(), number
    for question in order:
        if len(groups[question]) <= room:
            drawn.add(question)
            room -= len(groups[question])
    drawn = drawn or {min(order, key=lambda question: len(groups[question]))}
    return [one for question in groups if question in drawn for one in groups[question]][:number]
