"""``POST /v1/chat/completions``: the answer, whole and as a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import sse
from .answer import (
    Answer,
    Began,
    Event,
    Failed,
    Finished,
    Piece,
    Progress,
    Step,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
    total_usage,
)
from .task import Parsed
from .writing import Envelope

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "tool_calls": "tool_calls"}


class ChatWriter:
    """Writes an answer in the form of Chat Completions.

    Args:
        envelope: What every part of the answer carries.
        parsed: The request.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, envelope: Envelope, parsed: Parsed):
        self._envelope = envelope
        self._include_usage = parsed.include_usage
        self._calls: dict[int, int] = {}
        self._usages: dict[int, Usage] = {}

    def opening(self) -> Iterator[bytes]:
        """Nothing is said before the prompt is read."""
        return iter(())

    def feed(self, event: Event) -> Iterator[bytes]:
        """The server-sent events that an event makes."""
        if isinstance(event, Began):
            yield self._chunk(event.index, {"role": "assistant", "content": ""})
        elif isinstance(event, Text):
            key = "reasoning_content" if event.reasoning else "content"
            extra = {"pieces": pieces_json(event.pieces)} if event.pieces else None
            yield self._chunk(event.index, {key: event.text}, event.logprobs, extra)
        elif isinstance(event, ToolCall):
            place = self._calls.get(event.index, 0)
            self._calls[event.index] = place + 1
            yield self._chunk(event.index, {"tool_calls": [{"index": place, **call_json(event)}]})
        elif isinstance(event, Progress):
            yield sse.progress(event.done, event.total)
        elif isinstance(event, Step):
            yield self._chunk(event.index, {}, extra={"step": event.trace})
        elif isinstance(event, Finished):
            self._usages[event.index] = event.usage
            reason = _REASONS[event.reason]
            yield self._chunk(event.index, {}, extra=event.report, reason=reason)
        elif isinstance(event, Failed):
            yield sse.event(event.error.body("openai"))

    def closing(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """What ends a stream that went well."""
        if self._include_usage:
            chunk = self._head() | {"choices": [], "usage": usage_json(total_usage(answers, 1))}
            yield sse.event(chunk)
        yield sse.DONE

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer."""
        return {
            **self._envelope.head("chat.completion"),
            "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage_json(total_usage(answers, 1)),
            "redrafter": answers[0].end.report,
        }

    def _head(self) -> dict[str, Any]:
        return self._envelope.head("chat.completion.chunk")

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenLogprob] = (),
        extra: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs_json(logprobs),
            "finish_reason": reason,
        }
        chunk = self._head() | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        if extra:
            chunk["redrafter"] = extra
        return sse.event(chunk)


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [call_json(call) for call in answer.tool_calls]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_json(answer.logprobs),
        "finish_reason": _REASONS[answer.end.reason],
        "redrafter": answer.end.report,
    }


def call_json(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def pieces_json(pieces: Sequence[Piece]) -> list[list[str]]:
    """Pieces as [text, source] each."""
    return [[piece.text, piece.source] for piece in pieces]


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's form."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Log-probabilities in the form of Chat Completions."""
    if not logprobs:
        return None
    return {"content": entries_json(logprobs), "refusal": None}


def entries_json(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with theirs and those of the likeliest, as both of OpenAI's chat APIs have them."""
    return [
        _entry(entry) | {"top_logprobs": [_entry(other) for other in entry.top]}
        for entry in logprobs
    ]


def _entry(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.raw)}
