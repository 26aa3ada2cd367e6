"""Detokenising, stop strings, one response a token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.statistics import AcceptanceStats
from ..engine.step import DecodedToken, StepRecord
from ..errors import RedrafterError


@dataclass(frozen=True)
class GenerationResponse:
    """One token of an answer, in mlx-lm's terms.

    Attributes:
        text: What this token adds; "" while a character or a possible stop string is incomplete.
        token: Its id.
        from_draft: Whether the drafter had guessed it.
        finish_reason: "stop" or "length" on the last response, None before.
        prompt_tokens: Length of the prompt.
        prompt_tps: Prompt tokens per second, counting those already in the cache.
        generation_tokens: Tokens so far.
        generation_tps: Tokens per second since the first.
        peak_memory: In GB, since the program started.
        stats: The acceptance statistics so far; goes on counting, ``snapshot()`` keeps a copy.
        step: The step that produced the token; None for the first.
    """

    text: str
    token: int
    from_draft: bool
    finish_reason: str | None
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    stats: AcceptanceStats
    step: StepRecord | None


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several, checked."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise RedrafterError("stop has to be a string or strings, none of them empty.")
    return strings


class StopScanner:
    """Finds the first stop string in text that comes in pieces.

    Text that may still turn out to be the beginning of a stop string is held back.

    Args:
        stops: The strings; none of them empty.

    Attributes:
        found: The string that ended the text; None before.
    """

    def __init__(self, stops: Sequence[str]):
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return what can be shown, and whether a stop string was found."""
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) != -1]
        if found:
            at, self.found = min(found, key=lambda entry: entry[0])
            self._held = ""
            return text[:at], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``, without being all of it."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))


def respond(
    tokenizer: TokenizerWrapper,
    prompt: list[int],
    tokens: Iterator[DecodedToken],
    stats: AcceptanceStats,
    stops: tuple[str, ...],
    started: float | None = None,
) -> Iterator[GenerationResponse]:
    """Detokenise, watch for stop strings, measure; one response a token.

    Args:
        tokenizer: Of the tokens.
        prompt: What they follow.
        tokens: A text's; closed at its end.
        stats: Handed on.
        stops: Stop strings.
        started: When its prompt was begun, by ``time.perf_counter``; None for now.
    """
    detokenizer = tokenizer.detokenizer
    scanner = StopScanner(stops)
    started = time.perf_counter() if started is None else started
    prompt_tps = 0.0
    try:
        for count, decoded in enumerate(tokens, start=1):
            now = time.perf_counter()
            if count == 1:
                prompt_tps, started = len(prompt) / (now - started), now
            finish = decoded.finish_reason
            if finish != "stop":
                detokenizer.add_token(decoded.token)
            if finish is not None:
                detokenizer.finalize()
            text, stopped = scanner.feed(detokenizer.last_segment)
            finish = "stop" if stopped else finish
            if finish is not None and not stopped:
                text += scanner.flush()
            yield GenerationResponse(
                text=text,
                token=decoded.token,
                from_draft=decoded.from_draft,
                finish_reason=finish,
                prompt_tokens=len(prompt),
                prompt_tps=prompt_tps,
                generation_tokens=count,
                generation_tps=count / max(time.perf_counter() - started, 1e-9),
                peak_memory=mx.get_peak_memory() / 1e9,
                stats=stats,
                step=decoded.step,
            )
            if finish is not None:
                return
    finally:
        tokens.close()  # type: ignore[attr-defined]
