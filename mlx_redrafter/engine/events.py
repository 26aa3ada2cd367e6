"""What an engine's step reports of its sequences."""

from __future__ import annotations

from dataclasses import dataclass

from .step import DecodedToken


@dataclass(frozen=True)
class PromptRead:
    """Some of a prompt was run through the model; all that is to be where ``done`` is ``total``.

    Attributes:
        sequence: Which one.
        done: Prompt tokens done, those that its cache held already included.
        total: Prompt tokens to do: all but the last, which the first step takes.
        cached: Those that its cache held already.
    """

    sequence: int
    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class NewToken:
    """A token of a sequence; its last one carries a finish reason.

    Attributes:
        sequence: Which one.
        decoded: The token.
        prompt_seconds: Time spent on the prompt up to the first token.
    """

    sequence: int
    decoded: DecodedToken
    prompt_seconds: float


@dataclass(frozen=True)
class SequenceFailed:
    """A sequence that has ended with an error of its own; the others go on.

    Attributes:
        sequence: Which one.
        error: Why.
    """

    sequence: int
    error: Exception


Event = PromptRead | NewToken | SequenceFailed
