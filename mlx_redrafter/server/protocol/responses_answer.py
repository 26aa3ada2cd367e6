"""``POST /v1/responses``: the answer, whole and as the event stream that Codex reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import sse
from .answer import (
    Answer,
    Event,
    Failed,
    Finished,
    Progress,
    Step,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
)
from .chat_answer import entries_json, pieces_json
from .failures import ApiError
from .task import Parsed
from .writing import Envelope, new_id


@dataclass
class _Item:
    """An item of the output under way.

    Attributes:
        kind: "reasoning" or "message".
        id: Its name.
        text: Of it so far.
        logprobs: Of the text's tokens, where they are asked for.
    """

    kind: str
    id: str
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def part(self) -> dict[str, Any]:
        """Its one part of content."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        text = {"type": "output_text", "text": self.text, "annotations": []}
        return {**text, "logprobs": entries_json(self.logprobs)}

    def to_json(self, status: str) -> dict[str, Any]:
        """The item."""
        content = [self.part] if status != "in_progress" else []
        if self.kind == "reasoning":
            return {"id": self.id, "type": "reasoning", "summary": [], "content": content}
        made = {"id": self.id, "type": "message", "status": status, "role": "assistant"}
        return {**made, "content": content}


@dataclass
class ResponsesWriter:
    """Writes an answer in the form of the Responses API.

    Attributes:
        envelope: What every part of the answer carries.
        parsed: The request.
    """

    envelope: Envelope
    parsed: Parsed
    _output: list[dict[str, Any]] = field(default_factory=list)
    _item: _Item | None = None
    _number: int = -1
    _end: Finished | None = None

    @property
    def keep_alive(self) -> bytes:
        """An event, since readers that wait for events do not count comments."""
        return self._event("response.in_progress", response=self._response("in_progress"))

    def opening(self) -> Iterator[bytes]:
        """The answer is announced before the prompt is read."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response("in_progress"))

    def feed(self, event: Event) -> Iterator[bytes]:
        """The server-sent events that an event makes."""
        if isinstance(event, Text):
            if event.text:
                yield from self._text(event)
            elif self._item is not None:  # of tokens that add nothing to read
                self._item.logprobs += event.logprobs
        elif isinstance(event, ToolCall):
            yield from self._close_item("completed")
            yield from self._call(event)
        elif isinstance(event, Progress):
            yield self.keep_alive
        elif isinstance(event, Step):
            yield self._event("response.in_progress", redrafter={"step": event.trace})
        elif isinstance(event, Finished):
            self._end = event
            yield from self._close_item(_status(event))
        elif isinstance(event, Failed):
            yield self.failed(event.error)

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream which does not go well."""
        response = self._response("failed")
        response["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response=response)

    def closing(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """What ends a stream that went well."""
        end = answers[0].end
        name = "response.completed" if _status(end) == "completed" else "response.incomplete"
        yield self._event(name, response=self._response(_status(end), end))

    def body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer."""
        answer = answers[0]
        status = _status(answer.end)
        for place, part in enumerate(answer.parts, start=1):
            if isinstance(part, ToolCall):
                self._output.append(self._call_item(part, "completed"))
            else:  # what others follow is complete, as it is in a stream
                last = place == len(answer.parts)
                self._output.append(_item(part).to_json(status if last else "completed"))
        return self._response(status, answer.end)

    def _text(self, event: Text) -> Iterator[bytes]:
        kind = "reasoning" if event.reasoning else "message"
        if self._item is None or self._item.kind != kind:
            yield from self._close_item("completed")
            yield from self._open_item(_item(Text(event.index, "", event.reasoning)))
        assert self._item is not None
        self._item.text += event.text
        self._item.logprobs += event.logprobs
        name = "response.reasoning_text.delta" if event.reasoning else "response.output_text.delta"
        extra = {"redrafter": {"pieces": pieces_json(event.pieces)}} if event.pieces else {}
        more = {} if event.reasoning else {"logprobs": entries_json(event.logprobs)}
        yield self._event(name, **self._place(), content_index=0, delta=event.text, **more, **extra)

    def _open_item(self, item: _Item) -> Iterator[bytes]:
        self._item = item
        added = item.to_json("in_progress")
        yield self._event("response.output_item.added", output_index=len(self._output), item=added)
        yield self._event(
            "response.content_part.added", **self._place(), content_index=0, part=item.part
        )

    def _close_item(self, status: str) -> Iterator[bytes]:
        item = self._item
        if item is None:
            return
        reasoning = item.kind == "reasoning"
        name = "response.reasoning_text.done" if reasoning else "response.output_text.done"
        more = {} if reasoning else {"logprobs": entries_json(item.logprobs)}
        yield self._event(name, **self._place(), content_index=0, text=item.text, **more)
        yield self._event(
            "response.content_part.done", **self._place(), content_index=0, part=item.part
        )
        yield from self._done(item.to_json(status))
        self._item = None

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        item = self._call_item(call, "in_progress") | {"arguments": ""}
        place = {"item_id": item["id"], "output_index": len(self._output)}
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event(
            "response.function_call_arguments.done",
            **place,
            name=item["name"],
            arguments=call.arguments,
        )
        yield from self._done(item | {"arguments": call.arguments, "status": "completed"})

    def _call_item(self, call: ToolCall, status: str) -> dict[str, Any]:
        namespace, name = self.parsed.namespaced.get(call.name, (None, call.name))
        item = {
            "id": new_id("fc_"),
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": name,
            "arguments": call.arguments,
        }
        return item | {"namespace": namespace} if namespace else item

    def _done(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item.id, "output_index": len(self._output)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return sse.event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _response(self, status: str, end: Finished | None = None) -> dict[str, Any]:
        length = end is not None and end.reason == "length"
        made = {
            "id": self.envelope.id,
            "object": "response",
            "created_at": self.envelope.created,
            "model": self.envelope.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if length else None,
            "output": list(self._output),
            "usage": _usage_json(end.usage) if end else None,
            **self.parsed.echo,
        }
        return made | {"redrafter": end.report} if end else made


def _item(part: Text) -> _Item:
    """An item of the output for text or reasoning."""
    if part.reasoning:
        return _Item("reasoning", new_id("rs_"), part.text)
    return _Item("message", new_id("msg_"), part.text, part.logprobs)


def _status(end: Finished) -> str:
    return "incomplete" if end.reason == "length" else "completed"


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
