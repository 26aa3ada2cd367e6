"""``POST /v1/completions``: text that continues from a prompt (OpenAI's older API)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from . import sse
from .answer import Answer, Event, Failed, Finished, Progress, Step, Text, TokenLogprob, total_usage
from .chat_answer import pieces_json, usage_json
from .chat_request import StreamOptions
from .fields import (
    MAX_ANSWERS,
    Extension,
    Ignored,
    LogitBias,
    SamplingFields,
    Stops,
    StopString,
    TokenLimit,
    bias_pairs,
    parse,
    stop_list,
)
from .task import Parsed, Task
from .writing import Envelope

MAX_PROMPTS = 64
MAX_TOP_LOGPROBS = 5
_UTF8 = codecs.getincrementaldecoder("utf-8")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
IdLists = Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionRequest(SamplingFields):
    """The body."""

    model: str | None = None
    prompt: str | Texts | Ids | IdLists
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit = None
    stop: StopString | Stops | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logit_bias: LogitBias | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: Literal[""] | None = None
    redrafter: Extension | None = None
    user: Ignored = None


def parse_completion(body: dict[str, Any]) -> Parsed:
    """The request of a body.

    Raises:
        ApiError: 400 with the field's name.
    """
    request = parse(CompletionRequest, body)
    extension = request.redrafter or Extension()
    tasks = [
        Task(
            prompt=prompt,
            sampling=request.sampling() | bias_pairs(request.logit_bias),
            max_tokens=request.max_tokens,
            stops=stop_list(request.stop),
            count=request.n or 1,
            logprobs=request.logprobs,
            **extension.given(),
        )
        for prompt in _prompts(request.prompt)
    ]
    options = request.stream_options or StreamOptions()
    return Parsed(request.model, tasks, bool(request.stream), bool(options.include_usage))


def _prompts(prompt: Any) -> list[Any]:
    """One prompt or several: a list is one where it holds token ids."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


class CompletionWriter:
    """Writes an answer in the form of Completions.

    Args:
        envelope: What every part of the answer carries.
        parsed: The request.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, envelope: Envelope, parsed: Parsed):
        self._envelope = envelope
        self._parsed = parsed
        self._offsets: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def opening(self) -> Iterator[bytes]:
        """Nothing is said before the prompt is read."""
        return iter(())

    def feed(self, event: Event) -> Iterator[bytes]:
        """The server-sent events that an event makes."""
        if isinstance(event, Text):
            logprobs = self._logprobs(event.index, event.logprobs)
            extra = {"pieces": pieces_json(event.pieces)} if event.pieces else None
            yield self._chunk(event.index, event.text, logprobs, extra)
        elif isinstance(event, Progress):
            yield sse.progress(event.done, event.total)
        elif isinstance(event, Step):
            yield self._chunk(event.index, "", extra={"step": event.trace})
        elif isinstance(event, Finished):
            reason = "length" if event.reason == "length" else "stop"
            yield self._chunk(event.index, "", extra=event.report, reason=reason)
        elif isinstance(event, Failed):
            yield sse.event(event.error.body("openai"))

    def closing(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """What ends a stream that went well."""
        if self._parsed.include_usage:
            usage = usage_json(total_usage(answers, len(self._parsed.tasks)))
            yield sse.event(self._head() | {"choices": [], "usage": usage})
        yield sse.DONE

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": index,
                "text": answer.text,
                "logprobs": self._logprobs(index, answer.logprobs),
                "finish_reason": "length" if answer.end.reason == "length" else "stop",
                "redrafter": answer.end.report,
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_json(total_usage(answers, len(self._parsed.tasks)))
        report = answers[0].end.report
        return self._head() | {"choices": choices, "usage": usage, "redrafter": report}

    def _head(self) -> dict[str, Any]:
        return self._envelope.head("text_completion")

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._head() | {"choices": [choice]}
        if self._parsed.include_usage:
            chunk["usage"] = None
        return sse.event(chunk | {"redrafter": extra} if extra else chunk)

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not entries:
            return None
        decoder = self._decoders.setdefault(index, _UTF8("replace"))
        offsets = []
        for entry in entries:
            before = self._offsets.get(index, 0)
            made = decoder.decode(entry.raw)
            # A character that was begun, and does not go on, is written before this token.
            begun = len(decoder.getstate()[0])
            whole = entry.raw[: max(0, len(entry.raw) - begun)].decode("utf-8", "replace")
            broken = max(0, len(made) - len(whole))
            offsets.append(before + broken)
            self._offsets[index] = before + len(made)
        return {
            "tokens": [_name(entry) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_by_name(entry.top) for entry in entries],
            "text_offset": offsets,
        }


def _name(entry: TokenLogprob) -> str:
    """A token's text, or its bytes where these are a part of a character, as OpenAI writes them."""
    try:
        entry.raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + repr(entry.raw)[2:-1]
    return entry.token


def _by_name(top: Sequence[TokenLogprob]) -> dict[str, float] | None:
    """Log-probabilities by name; of tokens that read alike, the likeliest one's."""
    named: dict[str, float] = {}
    for entry in top:
        named.setdefault(_name(entry), entry.logprob)
    return named or None
