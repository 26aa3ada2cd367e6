"""Texts that the target writes itself, in files that grow as they come and can be gone on with.

Its answers to given prompts, and questions, drawn after the empty header of a user's turn: Magpie
(Xu et al. 2024, arXiv 2406.08464), by which what a chat model continues such a header with is a
question of the kind that it was made to answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.disk import changes, writing
from ..system.files import write_json
from ..text.chat_template import render
from .data import Record, is_message, is_text, write_jsonl
from .held_out import redrawn
from .regeneration import (
    Answer,
    check_prompts,
    decode_batch,
    regenerate,
    sampler_for,
    seed_of_draws,
)

# Low ones ask what is usual, high ones what is rare; each batch has one of them.
TEMPERATURES = (0.8, 1.0, 1.2)
MARK = "MARKOFAQUESTION"
NAME = "questions.jsonl"
SHORTEST, LONGEST = 8, 2000  # characters
MAX_DRAWS = 10  # times the number wanted, before giving up
FEWEST = 0.02  # of the draws of the first batches that have to be kept


def _claim(path: Path, what: str, identity: dict[str, Any], overwrite: bool) -> None:
    """Note what the texts in a file are and how they are made, or see that it is the same."""
    beside = path.with_suffix(".json")
    changed = changes(beside, identity)
    if path.is_file() and not beside.is_file():  # hours of work perhaps, so never thrown away
        raise RedrafterError(
            f"There are {what} in {path}, but no {beside.name}, which says how they were made: put "
            "it back beside them, remove the file to make new ones, or use another output "
            "directory."
        )
    if not beside.is_file() or (changed and overwrite):
        with writing(path):  # a directory of that name cannot be removed
            path.unlink(missing_ok=True)
    if not path.is_file():
        with writing(beside):
            write_json(beside, identity)
    elif changed:
        raise RedrafterError(
            f"The {what} in {path} were made with another {', another '.join(changed)}"
            f"{redrawn(changed)}: remove the file to make new ones, or use another output "
            "directory."
        )


def _read(path: Path, is_whole: Callable[[Record], bool]) -> list[Record]:
    """The records of whole lines, in their order, up to one that an interruption left half-written
    or that was damaged since."""
    if not path.is_file():
        return []
    records: list[Record] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line) if line.endswith("\n") else None
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or not is_whole(record):
                break
            records.append(record)
    return records


def _is_question(row: Record) -> bool:
    messages, batch = row.get("messages"), row.get("batch")
    first = messages[0] if isinstance(messages, list) and messages else None
    asked = isinstance(first, dict) and isinstance(first.get("content"), str)
    return asked and isinstance(batch, int) and batch >= 0


def _is_answer(row: Record) -> bool:
    if is_text(row):
        return isinstance(row["text"], str) and isinstance(row.get("prompt_tokens", 0), int)
    messages = row.get("messages")
    return isinstance(messages, list) and all(is_message(message) for message in messages)


def _append(path: Path, records: Iterable[Record]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@dataclass(frozen=True)
class AnswerSettings:
    """How the target answers.

    Attributes:
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time; several go to the chunks in turn.
        seed: Of the draws.
        chunk_size: Prompts answered side by side.
        prompt_tokens: Of a text, how many tokens begin it.
        longest: Tokens of a conversation or text at most; None for no limit.
    """

    max_tokens: int = 256
    temperature: float | list[float] = 0.0
    seed: int = 0
    chunk_size: int = 32
    prompt_tokens: int = 16
    longest: int | None = None


def answer_file(
    path: Path,
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    settings: AnswerSettings,
    *,
    target_sha256: str,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """The target's answers to all records, read from ``path`` as far as they are there.

    Beside it stands a .json file that says what the answers are to; answers to something else are
    not mixed in.

    Args:
        path: JSON Lines file.
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        records: See ``regeneration.regenerate``.
        settings: How to answer.
        target_sha256: Of the target's weights.
        overwrite: Replace answers that are known to be to something else instead of refusing.
        progress: Called with (records done, records in all), after every token too.

    Raises:
        RedrafterError: If the file holds answers to something else, or to what is not known, or
            cannot be written, or the chat template refuses a conversation.
    """
    identity = {
        "target": target_sha256,
        "template": _hash(getattr(tokenizer, "chat_template", None)),
        "data": _hash(list(records)),
        **asdict(settings),
    }
    _claim(path, "answers", identity, overwrite)
    done = _read(path, _is_answer)
    if len(done) < len(records):
        check_prompts(records, tokenizer)
        done = done[: len(done) // settings.chunk_size * settings.chunk_size]
    with writing(path):
        write_jsonl(path, done)

    def tick() -> None:
        if progress is not None:
            progress(len(done), len(records))

    tick()
    options = asdict(settings)
    answers = regenerate(model, tokenizer, records, **options, start=len(done), tick=tick)
    for record in answers:
        _append(path, [record])
        done.append(record)
        tick()
    return done


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class QuestionSettings:
    """How questions are drawn.

    Attributes:
        count: How many are wanted.
        max_tokens: Longest question; one that reaches it is not kept.
        seed: Of the draws.
        batch_size: Questions drawn side by side.
        temperatures: Of the batches, in turn.
    """

    count: int
    max_tokens: int = 160
    seed: int = 0
    batch_size: int = 32
    temperatures: tuple[float, ...] = TEMPERATURES


@dataclass(frozen=True)
class UserHeader:
    """What stands around a question in a model's chat template.

    Attributes:
        before: Token ids up to where the question begins.
        after: The text that follows it.
        ends: Tokens that end a question: the model's own ends, and the template's.
    """

    before: list[int]
    after: str
    ends: frozenset[int]


def user_header(tokenizer: Any) -> UserHeader:
    """The empty header of the user's first turn.

    Raises:
        RedrafterError: If there is no chat template, or it changes what it is given.
    """
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "--self-questions needs a chat model, and this model's tokenizer has no chat template: "
            "pass the chat version of the model, or --data."
        )
    text = render(tokenizer, [{"role": "user", "content": MARK}], add_generation_prompt=False)
    if not isinstance(text, str) or text.count(MARK) != 1:
        raise RedrafterError(
            "--self-questions finds no place for a question in this model's chat template: pass "
            "--data."
        )
    before, _, after = text.partition(MARK)
    ids = tokenizer.encode(before, add_special_tokens=False)
    following = tokenizer.encode(after, add_special_tokens=False)
    special = set(tokenizer.all_special_ids)
    first = {t for t in following[:2] if t in special}
    if not ids:
        raise RedrafterError(
            "--self-questions needs a chat template with a header before the user's words, and "
            "this model's has none: pass --data."
        )
    return UserHeader(ids, after, frozenset({*map(int, tokenizer.eos_token_ids), *first}))


def question_file(
    path: Path,
    model: Any,
    tokenizer: Any,
    settings: QuestionSettings,
    *,
    target_sha256: str,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """The model's own questions, read from ``path`` as far as they are there.

    Kept are questions that ended, of a usual length, each once.

    Args:
        path: JSON Lines file, which grows batch by batch and can be gone on with.
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        settings: How to draw.
        target_sha256: Of the target's weights.
        overwrite: Replace questions known to be drawn in another way instead of refusing.
        progress: Called with (questions kept, questions wanted), after every token too.

    Returns:
        ``settings.count`` records, {"messages": [{"role": "user", "content": ...}]}.

    Raises:
        RedrafterError: If the model has no chat template, hardly writes questions, or the file
            holds others or cannot be written.
    """
    header = user_header(tokenizer)
    identity = {"target": target_sha256, "header": header.before, **asdict(settings)}
    # The number is no part of it: the first questions are the same however many are wanted.
    del identity["count"]
    identity["temperatures"] = list(settings.temperatures)
    _claim(path, "questions", identity, overwrite)
    rows = _read(path, _is_question)
    if len(rows) >= settings.count:
        return [{"messages": row["messages"]} for row in rows[: settings.count]]
    # An interruption may have left a part of the last batch, which is drawn again.
    rows = [row for row in rows if row["batch"] < rows[-1]["batch"]]
    with writing(path):
        write_jsonl(path, rows)
    told = progress or (lambda _done, _total: None)

    def tick() -> None:
        told(min(len(rows), settings.count), settings.count)

    tick()
    first = rows[-1]["batch"] + 1 if rows else 0
    seen = {_key(_text(row)) for row in rows}
    for batch, texts in _batches(model, tokenizer, header, settings, first, tick):
        new = []
        for text in texts:
            if _key(text) not in seen:
                seen.add(_key(text))
                new.append({"messages": [{"role": "user", "content": text}], "batch": batch})
        _append(path, new)
        rows += new
        tick()
        if len(rows) >= settings.count:
            break
        _check_yield(len(rows), (batch + 1) * settings.batch_size, settings.count)
    return [{"messages": row["messages"]} for row in rows[: settings.count]]


def _batches(
    model: Any,
    tokenizer: Any,
    header: UserHeader,
    settings: QuestionSettings,
    first: int,
    tick: Callable[[], None],
) -> Iterator[tuple[int, list[str]]]:
    """(number, questions that may be kept) of each batch, without end."""
    batch = first
    while True:
        temperature = settings.temperatures[batch % len(settings.temperatures)]
        sampler = sampler_for(temperature, seed_of_draws(settings.seed, batch))
        prompts = [header.before] * settings.batch_size
        drawn = decode_batch(
            model, tokenizer, prompts, settings.max_tokens, sampler, tick, ends=header.ends
        )
        texts = [question_of(answer, tokenizer, header) for answer in drawn]
        yield batch, [text for text in texts if text is not None]
        batch += 1


def question_of(answer: Answer, tokenizer: Any, header: UserHeader) -> str | None:
    """The question that was drawn; None of what is cut off, empty, or no text.

    Templates whose turns end with plain words show the end in the text.
    """
    text = str(tokenizer.decode(answer.tokens))
    mark = header.after.strip()
    ended = answer.end is not None
    if mark and mark in text:
        text, ended = text.partition(mark)[0], True
    text = text.strip()
    if not ended or not SHORTEST <= len(text) <= LONGEST:
        return None
    if "\ufffd" in text or not re.search(r"\w", text):
        return None
    return None if any(t in text for t in tokenizer.all_special_tokens if t) else text


def _key(text: str) -> str:
    """What is the same question: letters and figures alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _text(row: Record) -> str:
    return str(row["messages"][0]["content"])


def _check_yield(kept: int, drawn: int, wanted: int) -> None:
    few = drawn >= 256 and kept < FEWEST * drawn
    if few or drawn > MAX_DRAWS * max(wanted, 256):
        raise RedrafterError(
            f"Of {drawn:,} questions that the model drew only {kept:,} could be kept (ended, of a "
            "usual length, no repeats): ask for fewer, or pass --data."
        )
