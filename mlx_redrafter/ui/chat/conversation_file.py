"""Conversations on disk: JSON with the messages in the usual form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ...errors import RedrafterError
from ...ranges import are_counts
from ...system.directories import require_directories
from ...system.files import is_there, size_words, write_json
from ...system.visible import whole_characters
from .resuming import CutMark

MOST_BYTES = 1 << 26  # more is no conversation, and would be read into memory whole
ROLES = ("system", "user", "assistant")
CUT = "cut"
Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """What a file holds.

    Attributes:
        system: The system message, None where there is none.
        messages: All others.
        cut: How to go on with the last of them, where it is an answer that was cut.
    """

    system: str | None
    messages: Sequence[Message]
    cut: CutMark | None = None


def save_conversation(path: Path, model: str, conversation: Conversation) -> None:
    """Write a conversation; an existing file is replaced only when the new one is complete.

    Raises:
        RedrafterError: If the place cannot be written.
    """
    system, cut = conversation.system, conversation.cut
    above = [{"role": "system", "content": system}] if system else []
    more = {} if cut is None else {CUT: asdict(cut)}
    try:
        write_json(path, {"model": model, "messages": [*above, *conversation.messages], **more})
    except OSError as error:
        raise RedrafterError(f"{path} cannot be written: {error.strerror or error}.") from error


def load_conversation(path: Path) -> Conversation:
    """Read a conversation.

    Raises:
        RedrafterError: If the file is missing or holds no conversation.
    """
    if is_there(path) and not path.is_file():
        raise RedrafterError(f"{path} is no file, so it holds no conversation.")
    try:
        require_directories(path.parent)
        if is_there(path) and path.stat().st_size > MOST_BYTES:
            raise RedrafterError(
                f"{path} is larger than {size_words(MOST_BYTES)}, so it holds no conversation."
            )
        value: Any = json.loads(path.read_text("utf-8-sig"))  # as some editors save it
    except OSError as error:
        raise RedrafterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RedrafterError(f"{path} holds no JSON, so no conversation: {error}.") from error
    entries = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise RedrafterError(f"{path} has no list of messages, so it holds no conversation.")
    messages = [_message(path, index, entry) for index, entry in enumerate(entries, start=1)]
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    cut = value.get(CUT) if isinstance(value, dict) else None
    goes_on = [message["role"] for message in messages[-2:]] == ["user", "assistant"]
    return Conversation(system, messages, _cut(path, cut) if goes_on else None)


def _cut(path: Path, entry: Any) -> CutMark | None:
    """How to go on with the last answer, where the file says that it was cut."""
    if entry is None:
        return None
    values = entry if isinstance(entry, dict) else {}
    ids, seed, named = (values.get(name) for name in ("token_ids", "seed", "named_seed"))
    if not isinstance(ids, list) or not are_counts([*ids, seed, 0 if named is None else named]):
        raise RedrafterError(
            f"{path}: '{CUT}' is not what /save writes of an answer that was cut (token_ids, seed, "
            "named_seed): correct it, or remove the entry."
        )
    return CutMark(tuple(ids), cast("int", seed), named)


def _message(path: Path, index: int, entry: Any) -> Message:
    if isinstance(entry, dict):
        role, content = entry.get("role"), entry.get("content")
        misplaced = role == "system" and index > 1
        if role in ROLES and isinstance(content, str) and not misplaced:
            return {"role": role, "content": whole_characters(content)}
    raise RedrafterError(
        f"{path}: message {index} is not a role (user, assistant, or system as the first) "
        "with its content as text."
    )
