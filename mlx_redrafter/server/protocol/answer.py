"""An answer, whichever API it goes out by: a stream of events, and all of them put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ...engine.step import TokenSource
from .failures import ApiError

Reason = Literal["stop", "stop_string", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """Some text and who proposed it: the model itself, its drafter, or a copy of earlier text."""

    text: str
    source: TokenSource


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability before temperature and filters.

    Attributes:
        token: Its text.
        raw: Its bytes, which need not be whole characters.
        logprob: Natural logarithm.
        top: The likeliest tokens at that place, likeliest first.
    """

    token: str
    raw: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer; ``cached`` of the prompt's were not computed again."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True)
class Began:
    """The prompt is read; ``cached`` of its tokens were known."""

    index: int
    prompt_tokens: int
    cached: int


@dataclass(frozen=True)
class Progress:
    """So many of the prompt's tokens are read."""

    index: int
    done: int
    total: int


@dataclass(frozen=True)
class Text:
    """What a token adds to the answer, or to the reasoning before it."""

    index: int
    text: str
    reasoning: bool = False
    pieces: tuple[Piece, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A whole call; ``arguments`` is JSON."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Step:
    """How a step of decoding went, ready for JSON; where the request asked for it."""

    index: int
    trace: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """The end.

    Attributes:
        index: Of the answer.
        reason: Why.
        usage: Tokens.
        report: Acceptance and seed, ready for JSON.
        stop: The stop string, where one was found.
    """

    index: int
    reason: Reason
    usage: Usage
    report: dict[str, Any]
    stop: str | None = None


@dataclass(frozen=True)
class Failed:
    """The end of one that did not go well."""

    index: int
    error: ApiError


Event = Began | Progress | Text | ToolCall | Step | Finished | Failed


@dataclass
class Answer:
    """All events of one answer.

    Attributes:
        parts: What it says, in that order; text of one kind is one part until a call ends it.
        logprobs: Of all its tokens.
        pieces: Who proposed its text.
        finished: How it ended; None until it has.
    """

    parts: list[Text | ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, Text):
            self._say(event)
            self.logprobs.extend(event.logprobs)
            self.pieces.extend(event.pieces)
        elif isinstance(event, ToolCall):
            self.parts.append(event)
        elif isinstance(event, Finished):
            self.finished = event

    def _say(self, event: Text) -> None:
        last = self.parts[-1] if self.parts else None
        if isinstance(last, Text) and last.reasoning == event.reasoning:
            joined = last.text + event.text
            logprobs = last.logprobs + event.logprobs
            self.parts[-1] = Text(event.index, joined, event.reasoning, logprobs=logprobs)
        elif event.text:
            said = Text(event.index, event.text, event.reasoning, logprobs=event.logprobs)
            self.parts.append(said)

    @property
    def text(self) -> str:
        """All that is said, without calls and reasoning."""
        return self._texts(reasoning=False)

    @property
    def reasoning(self) -> str:
        """All that is thought."""
        return self._texts(reasoning=True)

    def _texts(self, *, reasoning: bool) -> str:
        texts = (part for part in self.parts if isinstance(part, Text))
        return "".join(part.text for part in texts if part.reasoning == reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls alone."""
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def end(self) -> Finished:
        """How it ended; asked for only then."""
        assert self.finished is not None, "the answer has not ended"
        return self.finished


def total_usage(answers: Iterable[Answer], prompts: int) -> Usage:
    """Tokens of all answers; a prompt that was answered several times counts once.

    Args:
        answers: In their order, those of one prompt together.
        prompts: Number of prompts.
    """
    listed = [answer.end.usage for answer in answers]
    each = max(1, len(listed) // max(1, prompts))
    total = Usage()
    for place, usage in enumerate(listed):
        first = place % each == 0
        prompt, cached = (usage.prompt, usage.cached) if first else (0, 0)
        total = total.plus(Usage(prompt, cached, usage.completion, usage.reasoning))
    return total
