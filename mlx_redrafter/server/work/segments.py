"""Answers taken apart: reasoning, text and tool calls, by mlx-lm's markers and parsers."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...engine.step import TokenSource
from ..protocol.answer import Piece, Text, ToolCall
from ..protocol.json_body import check_json, parse_json


class Segments:
    """Takes an answer's text as it comes and says what each part of it is.

    A call that its parser cannot read, or of a tool that was not offered, is text like any other:
    nothing the model wrote is lost. Only the blank lines that a format sets between thoughts and
    calls are not said: templates set them too, and a client that sent them back would double them.

    Args:
        tokenizer: Knows the markers.
        index: Of the answer.
        tools: Those offered, for the parser.
        initial: "normal", "reasoning" or "tool": what the prompt's end has opened.

    Attributes:
        calls: Calls made so far.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        index: int,
        tools: list[dict[str, Any]],
        initial: str = "normal",
    ):
        self.calls = 0
        self._tokenizer = tokenizer
        self._index = index
        self._tools = tools
        self._names = frozenset(tool["function"]["name"] for tool in tools)
        self._state = make_text_state_machine(tokenizer).make_state(initial)
        self._open = initial  # the state of the text so far
        self._call = ""
        self._held = ""  # text that is not said yet, since a call may follow
        self._last: Literal["begun", "said", "called"] = "begun"  # thoughts begin anew
        self._trail = _Trail()

    @property
    def reasons(self) -> bool:
        """Whether what comes is reasoning."""
        return self._open == "reasoning"

    def feed(self, text: str, source: TokenSource) -> Iterator[Text | ToolCall]:
        """Take more text."""
        self._trail.push(text, source)
        self._state, segments = TextStateMachine.split(self._state, text)
        for state, part in segments:
            yield from self._take(state, part)

    def finish(self) -> Iterator[Text | ToolCall]:
        """Take the end of the text."""
        self._state, rest, state = TextStateMachine.flush(self._state)
        if rest:
            yield from self._take(state, rest)
        if self._open == "tool":
            yield from self._end_call(closed=False)
        yield from self._settle()

    def _take(self, state: str, part: str) -> Iterator[Text | ToolCall]:
        if self._open == "tool" and state != "tool":
            yield from self._end_call(closed=True)
        self._open = state
        if state == "tool":
            self._call += part
        elif part and state == "reasoning":
            yield from self._settle()
            self._last = "begun"
            yield Text(self._index, part, True, tuple(self._trail.pop(part)))
        elif part:
            self._held += part
            if not self._tools or self._last == "said" or self._held.strip():
                yield from self._say_held()

    def _settle(self) -> Iterator[Text]:
        """Say what is held back, unless it is the end of a call's line."""
        if self._last == "called":
            self._held = ""
        yield from self._say_held()

    def _say_held(self) -> Iterator[Text]:
        text, self._held = self._held, ""
        if text:
            self._last = "said"
            yield Text(self._index, text, pieces=tuple(self._trail.pop(text)))

    def _end_call(self, *, closed: bool) -> Iterator[Text | ToolCall]:
        raw, self._call, self._open = self._call, "", "normal"
        calls = self._parse(raw) if self._tools else None
        if calls is None:
            start, end = self._tokenizer.tool_call_start, self._tokenizer.tool_call_end
            text = f"{start}{raw}{end if closed and end else ''}"
            yield from self._say_held()
            self._last = "said"
            yield Text(self._index, text, pieces=(Piece(text, "own"),))
            return
        self.calls += len(calls)
        self._held, self._last = "", "called"
        yield from calls

    def _parse(self, raw: str) -> list[ToolCall] | None:
        """The calls that a piece of text makes, None if it cannot be read as calls."""
        if not raw.strip():
            return None
        try:
            found = self._tokenizer.tool_parser(raw, self._tools)
            return [self._made(call) for call in (found if isinstance(found, list) else [found])]
        except Exception:  # parsers fail in ways of their own on text that was cut off
            return None

    def _made(self, call: dict[str, Any]) -> ToolCall:
        arguments = call["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        if not isinstance(arguments, dict) or call["name"] not in self._names:
            raise ValueError("not a call of what was offered")
        name = str(call.get("id") or f"call_{secrets.token_hex(12)}")
        made = ToolCall(self._index, name, call["name"], json.dumps(arguments, ensure_ascii=False))
        # Clients read it as JSON, and send it back: Python's own reader takes more than they do.
        parse_json(made.arguments)
        check_json([made.id, made.name])
        return made


class _Trail:
    """Who proposed the text that is still held back, since it may begin a marker."""

    def __init__(self) -> None:
        self._held: deque[tuple[str, TokenSource]] = deque()

    def push(self, text: str, source: TokenSource) -> None:
        """More text, all from one source."""
        self._held.extend((character, source) for character in text)

    def pop(self, text: str) -> list[Piece]:
        """The sources of text that comes out; what was before it (a marker) is dropped."""
        held = "".join(character for character, _ in self._held)
        for _ in range(max(0, held.find(text))):
            self._held.popleft()
        pieces: list[Piece] = []
        for character in text:
            source = self._held.popleft()[1] if self._held else "own"
            if pieces and pieces[-1].source == source:
                pieces[-1] = Piece(pieces[-1].text + character, source)
            else:
                pieces.append(Piece(character, source))
        return pieces
