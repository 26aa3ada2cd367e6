"""The target's own answers in a file that grows as they come and can be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.files import write_json
from .data import Record, write_jsonl
from .output import changes, writing
from .regeneration import check_prompts, regenerate


@dataclass(frozen=True)
class AnswerSettings:
    """How the target answers.

    Attributes:
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time; several go to the chunks in turn.
        seed: Of the draws.
        chunk_size: Prompts answered side by side.
        prompt_tokens: Of a text, how many tokens begin it.
    """

    max_tokens: int = 256
    temperature: float | list[float] = 0.0
    seed: int = 0
    chunk_size: int = 32
    prompt_tokens: int = 16


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
        overwrite: Replace answers to something else instead of refusing.
        progress: Called with (records done, records in all), after every token too.

    Raises:
        RedrafterError: If the file holds answers to something else, or cannot be written, or the
            chat template refuses a conversation.
    """
    identity = {
        "target": target_sha256,
        "template": _hash(getattr(tokenizer, "chat_template", None)),
        "data": _hash(list(records)),
        **asdict(settings),
    }
    _claim(path, identity, overwrite)
    done = _read(path)
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
        with writing(path), path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        done.append(record)
        tick()
    return done


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _claim(path: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Note what the answers are to, or see that it is the same."""
    beside = path.with_suffix(".json")
    changed = changes(beside, identity)
    if not beside.is_file() or (changed and overwrite):
        path.unlink(missing_ok=True)
    if not path.is_file():
        with writing(beside):
            write_json(beside, identity)
    elif changed:
        raise RedrafterError(
            f"The answers in {path} were made with another {', another '.join(changed)}: remove "
            "the file to make new ones, or use another output directory."
        )


def _read(path: Path) -> list[Record]:
    """Whole lines; an interruption may have left a part of one."""
    if not path.is_file():
        return []
    records = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line) if line.endswith("\n") else None
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                break
            records.append(record)
    return records
