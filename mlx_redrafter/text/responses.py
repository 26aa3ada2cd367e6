"""Detokenising, stop strings, one response a token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.statistics import AcceptanceStats
from ..engine.step import DecodedToken, StepRecord, TokenSource
from ..errors import RedrafterError
from ..ranges import is_several
from .detokenizing import add_token


class NotKeptError(RedrafterError, AttributeError):
    """A response has not what was not asked for."""


@dataclass(frozen=True)
class GenerationResponse:
    """One token of an answer, in mlx-lm's terms.

    Attributes:
        text: What this token adds; "" while a character or a possible stop string is incomplete.
        token: Its id.
        from_draft: Whether it had been guessed or copied before the target chose it.
        finish_reason: "stop" or "length" on the last response, None before.
        prompt_tokens: Length of the prompt.
        prompt_tps: Prompt tokens per second, counting those already in the cache.
        generation_tokens: Tokens so far.
        generation_tps: Tokens per second since the first.
        peak_memory: In GB, since the program started.
        stats: The acceptance statistics up to this token's step, a copy. They count whole steps:
            where a stop string ends the text within one, also what that step made after it.
        step: The step that produced the token; None for the first.
        seed: Names the noise that the text is drawn with, whether it was given or not.
        logprob: The token's log-probability, where ``logprobs`` asks for it.
        top_logprobs: (token, log-probability) of so many likeliest, the likeliest first; of fewer
            where a schema, or processors, leave fewer.
        source: Who came up with the token: "guessed", "copied" or the target itself ("own").
        all_logprobs: What ``logprobs`` returns; None where it is not asked for.
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
    seed: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    source: TokenSource = "own"
    all_logprobs: mx.array | None = field(default=None, compare=False, repr=False)

    @property
    def logprobs(self) -> mx.array:
        """Log-probabilities of all tokens where this one was chosen, float32 (vocab_size,).

        As in mlx-lm after bias, penalties and processors, before temperature and filters. Kept only
        where ``logprobs=True`` asks for them, since each token's are as large as the vocabulary.

        Raises:
            RedrafterError: If they were not asked for; an AttributeError too, so that ``hasattr``
                says whether they are there.
        """
        if self.all_logprobs is None:
            raise NotKeptError(
                "The log-probabilities of all tokens were not asked for: pass logprobs=True."
            )
        return self.all_logprobs


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several, checked."""
    # A mapping may say more than its keys, which nobody would hear of.
    listed = is_several(stop) and not isinstance(stop, str | Mapping)
    strings: tuple[str, ...] = tuple(stop) if listed else (cast("str", stop),)
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


class ResponseWriter:
    """Turns the tokens of a text into responses: detokenises, watches for stop strings, measures.

    Args:
        tokenizer: Of the tokens.
        prompt_tokens: Length of the prompt.
        stops: Stop strings.
        stats: Counts of the text, which go on.
        seed: Of the text.
        prompt_seconds: Time its prompt took; None: measured from ``start`` to the first token.

    Attributes:
        finished: Whether the text has ended; further tokens are none of its.
        stop_string: The stop string that ended it; None where none did.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        prompt_tokens: int,
        stops: Sequence[str] = (),
        *,
        stats: AcceptanceStats | None = None,
        seed: int | None = None,
        prompt_seconds: float | None = None,
    ):
        self.finished = False
        self._detokenizer = tokenizer.detokenizer
        self._scanner = StopScanner(stops)
        self._prompt_tokens = prompt_tokens
        self._stats = stats if stats is not None else AcceptanceStats()
        self._counted = self._stats.snapshot()
        self._seed = seed
        self._prompt_seconds = prompt_seconds
        self._tokens = 0
        self.start()

    def start(self) -> None:
        """Measure from here on: its prompt is about to be read."""
        self._since = time.perf_counter()

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None where none did."""
        return self._scanner.found

    def add(self, decoded: DecodedToken) -> GenerationResponse:
        """The response to the text's next token."""
        if not self._tokens:
            now = time.perf_counter()
            if self._prompt_seconds is None:
                self._prompt_seconds = now - self._since
            self._since = now
        self._tokens += 1
        if self._stats.steps != self._counted.steps:
            self._counted = self._stats.snapshot()
        text, finish = self._text(decoded)
        self.finished = finish is not None
        return GenerationResponse(
            text=text,
            token=decoded.token,
            from_draft=decoded.from_draft,
            finish_reason=finish,
            prompt_tokens=self._prompt_tokens,
            prompt_tps=self._prompt_tokens / max(self._prompt_seconds or 0.0, 1e-9),
            generation_tokens=self._tokens,
            generation_tps=self._tokens / max(time.perf_counter() - self._since, 1e-9),
            peak_memory=mx.get_peak_memory() / 1e9,
            stats=self._counted,
            step=decoded.step,
            seed=self._seed,
            logprob=decoded.logprob,
            top_logprobs=decoded.top_logprobs,
            source=decoded.source,
            all_logprobs=decoded.all_logprobs,
        )

    def _text(self, decoded: DecodedToken) -> tuple[str, str | None]:
        """What a token adds to the text that is shown, and why the text ends, if it does."""
        finish = decoded.finish_reason
        if finish != "stop":
            add_token(self._detokenizer, decoded.token)
        if finish is not None:
            self._detokenizer.finalize()
        text, stopped = self._scanner.feed(self._detokenizer.last_segment)
        if stopped:
            return text, "stop"
        return (text + self._scanner.flush() if finish is not None else text), finish
