"""``POST /v1/messages``: the answer, whole and as Anthropic's stream of content blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import sse
from .answer import Answer, Began, Event, Failed, Finished, Progress, Step, Text, ToolCall, Usage
from .chat_answer import pieces_json
from .task import Parsed
from .writing import Envelope

_REASONS = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


@dataclass
class MessagesWriter:
    """Writes an answer in the form of Anthropic's Messages API.

    Attributes:
        envelope: What every part of the answer carries.
        parsed: The request.
    """

    envelope: Envelope
    parsed: Parsed
    keep_alive: bytes = sse.event({"type": "ping"}, "ping")
    _block: int = -1
    _open: str | None = None

    def opening(self) -> Iterator[bytes]:
        """Nothing is said before it is known how much of the prompt was cached."""
        return iter(())

    def feed(self, event: Event) -> Iterator[bytes]:
        """The server-sent events that an event makes."""
        if isinstance(event, Began):
            usage = Usage(event.prompt_tokens, event.cached)
            message = self._message([], None, None, usage)
            yield _event("message_start", message=message)
            yield self.keep_alive
        elif isinstance(event, Text):
            if event.text:
                yield from self._text(event)
        elif isinstance(event, ToolCall):
            yield from self._close()
            yield from self._call(event)
        elif isinstance(event, Progress):
            yield self.keep_alive
        elif isinstance(event, Step):
            yield _event("ping", redrafter={"step": event.trace})
        elif isinstance(event, Finished):
            yield from self._close()
            delta = {"stop_reason": _REASONS[event.reason], "stop_sequence": event.stop}
            usage_json = _usage_json(event.usage)
            yield _event("message_delta", delta=delta, usage=usage_json, redrafter=event.report)
        elif isinstance(event, Failed):
            yield sse.event(event.error.body("anthropic"), "error")

    def closing(self, answers: Sequence[Answer]) -> Iterator[bytes]:  # noqa: ARG002
        """What ends a stream that went well."""
        yield _event("message_stop")

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer."""
        answer = answers[0]
        content = [_block(part) for part in answer.parts]
        end = answer.end
        message = self._message(content, _REASONS[end.reason], end.stop, end.usage)
        return message | {"redrafter": end.report}

    def _text(self, event: Text) -> Iterator[bytes]:
        kind = "thinking" if event.reasoning else "text"
        if self._open != kind:
            yield from self._close()
            empty = {"signature": ""} if event.reasoning else {}
            yield from self._start(kind, {"type": kind, kind: "", **empty})
        extra = {"redrafter": {"pieces": pieces_json(event.pieces)}} if event.pieces else {}
        delta = {"type": f"{kind}_delta", kind: event.text}
        yield _event("content_block_delta", index=self._block, delta=delta, **extra)

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield from self._start("tool_use", block)
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        yield _event("content_block_delta", index=self._block, delta=delta)
        yield from self._close()

    def _start(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        self._block, self._open = self._block + 1, kind
        yield _event("content_block_start", index=self._block, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._block)

    def _message(
        self,
        content: list[dict[str, Any]],
        reason: str | None,
        stop: str | None,
        usage: Usage,
    ) -> dict[str, Any]:
        return {
            "id": self.envelope.id,
            "type": "message",
            "role": "assistant",
            "model": self.envelope.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": _usage_json(usage),
        }


def _block(part: Text | ToolCall) -> dict[str, Any]:
    """A part of a whole answer."""
    if isinstance(part, ToolCall):
        arguments = json.loads(part.arguments)
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}
    if part.reasoning:
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "text", "text": part.text}


def _event(name: str, **fields: Any) -> bytes:
    return sse.event({"type": name, **fields}, name)


def _usage_json(usage: Usage) -> dict[str, Any]:
    """Usage in Anthropic's form, where what was cached is not part of the input."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }
