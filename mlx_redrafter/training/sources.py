"""From a path or a Hub dataset to records, in the formats of mlx_lm.lora."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import RedrafterError
from ..system.files import local_path
from .data import Record, conversation, is_message, is_text, read_jsonl
from .held_out import Note, apart, each_once, split

FORMATS = (
    '{"messages": [...]}, {"prompt": ..., "completion": ...}, {"prompt": ...} or {"text": ...}'
)
_KEYS = ("messages", "prompt", "text")


def read_data(
    data: str | Path,
    *,
    held_out: int,
    max_records: int | None = None,
    answers: bool = True,
    before: Collection[str] = (),
    note: Note | None = None,
) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records) of a file, a directory or a Hub dataset.

    No question is among both.

    Args:
        data: A JSON Lines file; a directory with train.jsonl and, if it has one, valid.jsonl; or
            the name of a dataset on the Hub with these splits.
        held_out: Records held out: the first of the valid split, or drawn from the training ones.
        max_records: Use only so many training records, the first ones.
        answers: Whether the answers in the data are learned from, see ``held_out.split``. Then
            records without one are left out.
        before: Marks of questions that are held out first, see ``held_out.marks_of``.
        note: Told in a sentence of records that are left out.

    Raises:
        RedrafterError: If there is nothing of that name, nothing in it, not in a known format, no
            answer, or nothing else than what is held out.
    """
    path = local_path(data)
    names = str(data), f"The split 'valid' of {data}"
    if path.is_dir():
        train, valid = _of_directory(path)
        names = str(path / "train.jsonl"), str(path / "valid.jsonl")
    elif path.is_file():
        train, valid = read_jsonl(path), []
    else:
        train, valid = _of_hub(str(data))
    train = train[:max_records]
    if not train:
        raise RedrafterError(f"{data} is empty: write one {FORMATS} a line.")
    train = _usable(train, names[0], len(train), answers, note)
    valid = _usable(valid, names[1], held_out, answers, note)
    if not valid:
        return split(train, held_out, data, answers=answers, before=before, note=note)
    kept = apart(train, valid, note)
    if not kept:
        raise RedrafterError(
            f"All of the training records of {data} ask the same as those that it brings to "
            "evaluate on, so that nothing is left to learn from: add others."
        )
    return kept, valid if answers else each_once(valid)


def _usable(
    records: Sequence[Record], name: str, most: int, answers: bool, note: Note | None
) -> list[Record]:
    """The first records, ``most`` of them, that something is learned from.

    Args:
        records: Of any kind; those that are reached are checked.
        name: Names them in a sentence.
        most: How many are wanted.
        answers: Whether they have to bring their answers.
        note: Told how many have none.
    """
    usable: list[Record] = []
    reached = 0
    for record in records:
        if len(usable) == most:
            break
        reached += 1
        _check(record, f"{name}, record {reached}")
        if not answers or has_answer(record):
            usable.append(record)
    if records and not usable:
        raise RedrafterError(
            f"{name} has prompts but no answers: let the target answer with --regenerate."
        )
    if len(usable) < reached and note is not None:
        note(
            f"{reached - len(usable):,} of {reached:,} records of {name} have no answer, and are "
            "left out (with --regenerate the target answers them)."
        )
    return usable


def has_answer(record: Record) -> bool:
    """Whether a record has anything that the target would have written."""
    if is_text(record):
        return bool(record["text"].strip())
    # What a conversation opens with was an answer to nothing.
    return any(message["role"] == "assistant" for message in conversation(record)[1:])


def _of_directory(path: Path) -> tuple[list[Record], list[Record]]:
    if not (path / "train.jsonl").is_file():
        raise RedrafterError(f"{path} has no train.jsonl: put the data there, one object a line.")
    valid = path / "valid.jsonl"
    return read_jsonl(path / "train.jsonl"), read_jsonl(valid) if valid.is_file() else []


def _of_hub(name: str) -> tuple[list[Record], list[Record]]:
    """Splits of a dataset on the Hub, read with mlx_lm's own reader."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".jsonl"):
        raise RedrafterError(f"There is no {name}: pass a JSON Lines file or a directory.")
    try:
        import datasets
    except ImportError as error:
        raise RedrafterError(
            f"There is no file or directory {name}; to fetch it from the Hugging Face Hub install "
            "'datasets' (pip install datasets)."
        ) from error
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # of many kinds, from many libraries
        reason = " ".join(str(error).split())[:200]
        raise RedrafterError(
            f"{name} is no file or directory, and could not be fetched from the Hugging Face Hub "
            f"({reason}): check the name, or your network."
        ) from error
    if "train" not in found:
        raise RedrafterError(f"The dataset {name} has no split 'train': choose another.")
    return [dict(row) for row in found["train"]], [dict(row) for row in found.get("valid", [])]


def _check(record: Record, where: str) -> None:
    """Refuse a record that is in no known format; ``where`` names it."""
    if not any(key in record for key in _KEYS):
        raise RedrafterError(f"{where} has the keys {sorted(record)}: write {FORMATS}.")
    for key in ("prompt", "completion", "text"):
        if key in record and not isinstance(record[key], str):
            raise RedrafterError(f"{where}: '{key}' has to be a text.")
    # As answers.jsonl has it; other data may call something else so.
    begun = record.get("prompt_tokens")
    if begun is not None and not isinstance(begun, int):
        raise RedrafterError(
            f"{where}: 'prompt_tokens', how many tokens of a text are not learned from, has to be "
            "a whole number: correct it, or leave it out."
        )
    messages = record.get("messages", [])
    good = isinstance(messages, list) and all(is_message(m) for m in messages)
    if not good or ("messages" in record and not messages):
        raise RedrafterError(
            f"{where}: 'messages' has to be a list of objects with 'role' and 'content'."
        )
    if not is_text(record):
        _check_conversation(record, where)


def _check_conversation(record: Record, where: str) -> None:
    """Refuse what no chat template could be given, while it is known which record has it."""
    if not isinstance(record.get("tools", []), list | None):
        raise RedrafterError(f"{where}: 'tools' has to be a list of descriptions of functions.")
    try:
        conversation(record)
    except RedrafterError as error:
        reason = str(error)
        raise RedrafterError(f"{where}: {reason[0].lower()}{reason[1:]}") from None
