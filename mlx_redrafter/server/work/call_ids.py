"""Ids of tool calls: nine letters and digits, as Mistral's chat templates want them.

Clients and the other templates take any. What a conversation brings from elsewhere is renamed only
for a template that refuses it.
"""

from __future__ import annotations

import secrets
import string
from collections import deque
from hashlib import sha256
from typing import Any

from ..protocol.task import Message

LENGTH = 9
_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """An id that no other call has."""
    return "".join(secrets.choice(_LETTERS) for _ in range(LENGTH))


def with_short_ids(messages: list[Message]) -> list[Message]:
    """The messages with ids of that form, equal where they were equal.

    A call without one gets one, and a result without one that of the first call before it that has
    no result yet. A name follows from the old one, or from its place: prompts that begin alike
    still do.
    """
    made: list[Message] = []
    unanswered: deque[str] = deque()
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            named = [{**call, "id": _short(call, "id", place, n)} for n, call in enumerate(calls)]
            unanswered = deque(call["id"] for call in named)
            message = {**message, "tool_calls": named}
        elif message["role"] == "tool":
            known = message.get("tool_call_id") is not None or not unanswered
            name = _short(message, "tool_call_id", place) if known else unanswered[0]
            if name in unanswered:
                unanswered.remove(name)
            message = {**message, "tool_call_id": name}
        made.append(message)
    return made


def _short(holder: dict[str, Any], key: str, *place: int) -> str:
    given = holder.get(key)
    if isinstance(given, str) and len(given) == LENGTH and given.isascii() and given.isalnum():
        return given
    return sha256(str(place if given is None else given).encode()).hexdigest()[:LENGTH]
