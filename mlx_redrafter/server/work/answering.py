"""A sequence's tokens as the events of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...text.course import Course
from ...text.detokenizing import add_token
from ...text.responses import StopScanner
from ...text.tokenizers import token_text
from ..protocol.answer import (
    Began,
    Event,
    Finished,
    Piece,
    Progress,
    Reason,
    Step,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
)
from .prompts import Encoded
from .schema_segments import SchemaSegments
from .segments import Segments
from .sequences import Decoding, NewToken, PromptRead, StepShape
from .token_bytes import UNREADABLE, bytes_of, ends_within

LEAD_IN = 8  # of the tokens that a text goes on from, those that are detokenised again


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        index: Its place among the answers of the request.
        encoded: The prompt.
        decoding: How to continue from it.
        stops: Strings that end it.
        trace: Whether its steps are reported.
    """

    index: int
    encoded: Encoded
    decoding: Decoding
    stops: tuple[str, ...] = ()
    trace: bool = False


@dataclass
class Answering:
    """Makes the events of one answer.

    Attributes:
        job: What is wanted.
        tokenizer: Of its model.
        statistics: Asked for the acceptance so far.
        plain_speed: Asked for the speed of plain decoding after so many tokens.
        others: Asked how many other answers are under way, whose steps take of this one's time.
        done: Whether the answer has ended, and the sequence is no longer needed.
        began: Whether its prompt is read.
    """

    job: Job
    tokenizer: TokenizerWrapper
    statistics: Callable[[], dict[str, Any]]
    plain_speed: Callable[[int], float | None] = lambda _context: None
    others: Callable[[], int] = lambda: 0
    done: bool = False
    began: bool = False
    _cached: int = 0
    _tokens: int = 0
    _reasoning: int = 0
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        job = self.job
        self._detokenizer = self.tokenizer.detokenizer
        self._skip = 0
        self._known = job.encoded.left_out
        self._scanner = StopScanner(job.stops)
        self._segments = self._apart()
        if job.encoded.continues:
            self._lead_in(job.decoding.prompt[-LEAD_IN:])

    def _apart(self) -> Segments | SchemaSegments | None:
        """What takes the answer apart; None for bare text."""
        encoded, decoding = self.job.encoded, self.job.decoding
        if encoded.initial is None:
            return None
        tools = list(encoded.tools)
        if decoding.schema is None:
            return Segments(self.tokenizer, self.job.index, tools, encoded.initial)
        course = Course.begin(self.tokenizer, decoding.prompt, calls=decoding.calls)
        return SchemaSegments(self.tokenizer, self.job.index, tools, course)

    def _lead_in(self, tokens: list[int]) -> None:
        """Let the text begin after the prompt's end: detokenizers drop a leading space."""
        alone = self.tokenizer.detokenizer
        for detokenizer in (alone, self._detokenizer):
            for token in tokens:
                add_token(detokenizer, token)
        certain = len(alone.text)
        alone.finalize()
        rest: str = alone.text[certain:]
        if ends_within(b"".join(self._bytes(token) for token in tokens)):
            rest = rest.rstrip(UNREADABLE)  # the answer's first bytes may complete the character
        self._skip = certain + len(rest)

    def _bytes(self, token: int) -> bytes:
        entry = self.tokenizer.convert_ids_to_tokens(token)
        return bytes_of(token_text(self.tokenizer, token), entry)

    def _new_text(self) -> str:
        """What the detokenizer has made since it was last asked, the prompt's end left out."""
        text: str = self._detokenizer.last_segment
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return self._without_known(text[skipped:])

    def _without_known(self, text: str) -> str:
        """The text without the space that the client has, as far as it begins with that."""
        while text and text[0] == self._known[:1]:
            text, self._known = text[1:], self._known[1:]
        if text:
            self._known = ""
        return text

    def prompt(self, read: PromptRead) -> Iterator[Event]:
        """Events of a prompt that is being read."""
        if read.done < read.total:
            yield Progress(self.job.index, read.done, read.total)
        else:
            yield from self._begin(read.cached)

    def _begin(self, cached: int) -> Iterator[Event]:
        if not self.began:
            self.began, self._cached = True, cached
            yield Began(self.job.index, len(self.job.decoding.prompt), cached)

    def token(self, token: NewToken) -> Iterator[Event]:
        """Events of a token; those after the end are dropped."""
        if self.done:
            return
        yield from self._begin(0)
        self._tokens += 1
        if self.job.trace and token.step is not None:
            yield Step(self.job.index, self._trace(token.step))
        finish = token.finish_reason
        if finish != "stop":
            add_token(self._detokenizer, token.token)
            self._note_logprob(token)
        if finish is not None:
            self._detokenizer.finalize()
        new = self._new_text()
        if self._segments is not None:
            self._segments.follow(None if finish == "stop" else token.token, len(new))
        text, stopped = self._scanner.feed(new)
        if finish is not None and not stopped:
            text += self._scanner.flush()
        called = False
        for event in self._wanted(self._parts(text, token)):
            called = called or isinstance(event, ToolCall)
            yield self._with_logprobs(event)
        if self._segments is not None and self._segments.reasons:
            self._reasoning += 1
        if called and not self.job.encoded.parallel:
            yield from self._end("tool_calls")
        elif stopped:
            yield from self._end("stop_string")
        elif finish is not None:
            yield from self._end("length" if finish == "length" else "stop")

    def _parts(self, text: str, token: NewToken) -> Iterator[Text | ToolCall]:
        if not text:
            return
        if self._segments is not None:
            yield from self._segments.feed(text, token.source)
        else:
            yield Text(self.job.index, text, pieces=(Piece(text, token.source),))

    def _wanted(self, parts: Iterator[Text | ToolCall]) -> Iterator[Text | ToolCall]:
        """The parts, none behind the first call where only one may be made."""
        for part in parts:
            yield part
            if isinstance(part, ToolCall) and not self.job.encoded.parallel:
                return

    def _end(self, reason: Reason) -> Iterator[Event]:
        self.done = True
        segments = self._segments
        if segments is not None and reason != "tool_calls":
            rest = segments.finish(cut=self._is_cut(reason))
            yield from map(self._with_logprobs, self._wanted(rest))
        if segments is not None and segments.calls and reason in ("stop", "stop_string"):
            reason = "tool_calls"
        if self._logprobs:
            yield self._with_logprobs(Text(self.job.index, ""))
        stop = self._scanner.found if reason == "stop_string" else None
        seed = self.job.decoding.sampling.get("seed")
        report = self.statistics() | {"seed": seed}
        yield Finished(self.job.index, reason, self.usage, report, stop)

    def _is_cut(self, reason: Reason) -> bool:
        """Whether the model had more to say; a stop string may be the end of a call itself."""
        end = self.tokenizer.tool_call_end
        call_ends = bool(end) and (self._scanner.found or "").lstrip().startswith(end)
        return reason == "length" or (reason == "stop_string" and not call_ends)

    @property
    def usage(self) -> Usage:
        """Tokens so far; none of a prompt that has not been read."""
        prompt = len(self.job.decoding.prompt) if self.began else 0
        return Usage(prompt, self._cached, self._tokens, self._reasoning)

    def _note_logprob(self, token: NewToken) -> None:
        if token.logprob is not None:
            top = tuple(self._logprob(other, value) for other, value in token.top)
            self._logprobs.append(self._logprob(token.token, token.logprob, top))

    def _logprob(
        self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        text = token_text(self.tokenizer, token)
        return TokenLogprob(text, self._bytes(token), logprob, top)

    def _with_logprobs(self, event: Event) -> Event:
        """The event with the log-probabilities of the tokens up to its end, and without sources
        where nobody asked for them."""
        if not isinstance(event, Text):
            return event
        logprobs, self._logprobs = tuple(self._logprobs), []
        pieces = event.pieces if self.job.trace else ()
        return Text(event.index, event.text, event.reasoning, pieces, logprobs)

    def _trace(self, step: StepShape) -> dict[str, Any]:
        """A step for those who watch: the tree with its texts, and the counts so far."""
        context = len(self.job.decoding.prompt) + self._tokens
        return {
            "tree": {
                "tokens": [token_text(self.tokenizer, token) for token in step.tokens],
                "parents": list(step.parents),
                "path": list(step.path),
            },
            "statistics": self.statistics(),
            "plain_tokens_per_second": self.plain_speed(context),
            "others": self.others(),
        }
