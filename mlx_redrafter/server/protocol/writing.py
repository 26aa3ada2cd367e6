"""What answers of all APIs have in common."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .answer import Answer, Event


@dataclass(frozen=True)
class Envelope:
    """What every part of an answer carries.

    Attributes:
        id: Of the answer.
        created: Unix time in seconds.
        model: The name of the model that answers.
        fingerprint: Names the versions that made the answer.
    """

    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of OpenAI's."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def new_id(prefix: str) -> str:
    """A name that no other answer has."""
    return f"{prefix}{secrets.token_hex(12)}"


class Writer(Protocol):
    """Writes the events of an answer in the form of one API."""

    @property
    def keep_alive(self) -> bytes:
        """What shows, while nothing happens, that the connection lives."""

    def opening(self) -> Iterator[bytes]:
        """What a stream begins with, before the prompt is read."""

    def feed(self, event: Event) -> Iterator[bytes]:
        """The server-sent events that an event makes."""

    def closing(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """What ends a stream that went well."""

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer, for a request that wants no stream."""
