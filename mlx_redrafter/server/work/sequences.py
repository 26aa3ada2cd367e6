"""What the server wants of an engine: sequences that join, advance together and leave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ...engine.step import TokenSource


@dataclass(frozen=True)
class Decoding:
    """A prompt and how to continue from it.

    Attributes:
        prompt: Token ids, at least one.
        max_tokens: Tokens at most.
        sampling: Fields of SamplingConfig, the seed among them.
        draft: Whether to draft, where the model can.
        copies: Whether to draft copies of the text too.
        logprobs: None for none; else how many likeliest tokens are reported with each.
        schema: A JSON schema, as JSON, that the text has to follow; None for free text.
        calls: Whether it may be a tool call instead.
    """

    prompt: list[int]
    max_tokens: int
    sampling: dict[str, Any]
    draft: bool = True
    copies: bool = False
    logprobs: int | None = None
    schema: str | None = None
    calls: bool = False


@dataclass(frozen=True)
class PromptRead:
    """Some of a prompt was run through the model; all of it where ``done`` is ``total``."""

    sequence: int
    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class NewToken:
    """A token of a sequence.

    Attributes:
        sequence: Its sequence.
        token: Its id.
        source: Who proposed it.
        finish_reason: "stop" for an end-of-sequence token, "length" for the last that is allowed.
        logprob: Its log-probability, where asked for.
        top: (token, log-probability) of the likeliest.
        step: What its step verified, for the first token of a step; None for others.
    """

    sequence: int
    token: int
    source: TokenSource = "own"
    finish_reason: str | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    step: StepShape | None = None


@dataclass(frozen=True)
class StepShape:
    """What a step verified and accepted.

    Attributes:
        tokens: Token of each node, the root's first.
        parents: Index of each node's parent; -1 for the root.
        path: The accepted nodes, the root (0) first.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    path: tuple[int, ...]


@dataclass(frozen=True)
class SequenceFailed:
    """A sequence that ended with an error of its own."""

    sequence: int
    error: Exception


SequenceEvent = PromptRead | NewToken | SequenceFailed


class Sequences(Protocol):
    """Sequences of one model that are decoded together; used from one thread only."""

    def add(self, decoding: Decoding) -> int:
        """Let a sequence join; returns its number. Nothing is computed yet.

        Raises:
            RedrafterError: If it cannot be decoded.
        """

    def known(self, prompt: list[int]) -> int:
        """How many tokens a prompt begins with that would not be computed again."""

    def step(self) -> Iterable[SequenceEvent]:
        """Read a piece of a prompt, if one waits, and take one step of all that have begun."""

    def stop(self, sequence: int) -> None:
        """Let a sequence leave before its end; one that has ended is left alone."""

    def statistics(self, sequence: int) -> dict[str, Any]:
        """Acceptance of a sequence so far, ready for JSON; asked for until it is stopped."""

    def plain_tokens_per_second(self, context: int) -> float | None:
        """What plain decoding of one sequence makes here, by steps that were timed; None before
        a few were."""

    @property
    def cache_bytes(self) -> int:
        """Memory that the prefix cache holds."""
