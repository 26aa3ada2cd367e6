"""Conversations on disk: JSON with the messages in the usual form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import RedrafterError
from ...system.directories import require_directories
from ...system.files import is_there, size_words, write_json
from ...system.visible import whole_characters

MOST_BYTES = 1 << 26  # more is no conversation, and would be read into memory whole
ROLES = ("system", "user", "assistant")
Message = dict[str, str]


def save_conversation(
    path: Path, model: str, system: str | None, messages: Sequence[Message]
) -> None:
    """Write a conversation; an existing file is replaced only when the new one is complete.

    Raises:
        RedrafterError: If the place cannot be written.
    """
    above = [{"role": "system", "content": system}] if system else []
    try:
        write_json(path, {"model": model, "messages": [*above, *messages]})
    except OSError as error:
        raise RedrafterError(f"{path} cannot be written: {error.strerror or error}.") from error


def load_conversation(path: Path) -> tuple[str | None, list[Message]]:
    """Read a conversation: its system message, if any, and the rest.

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
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


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
