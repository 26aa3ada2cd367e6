"""Answers taken apart: reasoning, text and tool calls, by mlx-lm's markers and parsers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...engine.step import TokenSource
from ...text.passages import KINDS
from ..protocol.answer import Piece, Text, ToolCall
from ..protocol.json_body import check_json, parse_json
from .call_ids import new_call_id

_Sourced = tuple[str, TokenSource]  # a character, and who came up with it


class Segments:
    """Takes an answer's text as it comes and says what each part of it is.

    A call that its parser cannot read, or of a tool that was not offered, is text like any other:
    nothing the model wrote is lost. Only what a format sets between thoughts, text and calls is not
    said, headers and blank lines, and the space at the end of the text before a call: templates set
    them too, and a client that sent them back would double them. What stands in a header's place,
    but is never ended as one, is the answer if nothing else is.

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
        self._held: deque[_Sourced] = deque()  # what may begin a marker
        self._header: list[_Sourced] = []  # what no marker has confirmed to be one
        self._any = False  # whether anything was handed out
        self._unsaid: list[_Sourced] = []  # space that is not said yet, since a call may follow
        self._last: Literal["begun", "said", "called"] = "begun"  # thoughts begin anew

    @property
    def reasons(self) -> bool:
        """Whether what comes is reasoning."""
        return self._open == "reasoning"

    def follow(self, token: int | None, characters: int) -> None:
        """Hear of a token: nothing to note, as the text alone says what is what."""

    def feed(self, text: str, source: TokenSource) -> Iterator[Text | ToolCall]:
        """Take more text."""
        for state, characters in self._split(text, source):
            yield from self._noted(self._take(state, characters))

    def finish(self, *, cut: bool = False) -> Iterator[Text | ToolCall]:
        """Take the end of the text.

        Args:
            cut: Whether the model had more to say. Some parsers read a call of which a part is
                missing, and a call without some of its arguments may do anything: it is text.
        """
        yield from self._noted(self._rest(cut))

    def _rest(self, cut: bool) -> Iterator[Text | ToolCall]:
        answers = not self._any and any(not one.isspace() for one, _ in self._header)
        self._state, rest, state = TextStateMachine.flush(self._state)
        if rest:
            yield from self._take(state, list(self._held))
        if self._open == "tool":
            yield from self._end_call(closed=False, cut=cut)
        if answers:
            self._unsaid += self._header
        yield from self._settle()

    def _noted(self, parts: Iterator[Text | ToolCall]) -> Iterator[Text | ToolCall]:
        for part in parts:
            self._any = True
            yield part

    def _split(self, text: str, source: TokenSource) -> list[tuple[str, list[_Sourced]]]:
        """More text, all from one source, as one part for each state that it goes through.

        It is read character by character: of several markers at once the machine does not say
        which characters are theirs, and what they leave may read as a part of one.
        """
        parts: list[tuple[str, list[_Sourced]]] = [(self._state[0], [])]
        for character in text:
            self._held.append((character, source))
            self._state, segments = TextStateMachine.split(self._state, character)
            decided = len(self._held) - len(self._state[3])
            out = [self._held.popleft() for _ in range(decided)]
            parts[-1][1].extend(out[: len(segments[0][1])])  # behind it there is a marker at most
            parts += [(state, []) for state, _ in segments[1:]]
        return parts

    def _take(self, state: str, characters: list[_Sourced]) -> Iterator[Text | ToolCall]:
        if self._open == "tool" and state != "tool":
            yield from self._end_call(closed=True)
        self._open = state
        self._header = [] if state in KINDS else [*self._header, *characters]
        part = "".join(character for character, _ in characters)
        if state == "tool":
            self._call += part
        elif part and state == "reasoning":
            yield from self._settle()
            self._last = "begun"
            yield Text(self._index, part, True, pieces_of(characters))
        elif part and state in KINDS:
            self._unsaid += characters
            held = len(part) - len(part.rstrip()) if self._tools else 0
            if held < len(part):
                yield from self._say(len(self._unsaid) - held)

    def _settle(self) -> Iterator[Text]:
        """Say what is held back, unless it is the end of a call's line."""
        if self._last == "called":
            self._unsaid = []
        yield from self._say()

    def _say(self, count: int | None = None) -> Iterator[Text]:
        """Say what is not said yet, or so many characters of it."""
        characters = self._unsaid[:count]
        self._unsaid = self._unsaid[len(characters) :]
        if characters:
            self._last = "said"
            text = "".join(character for character, _ in characters)
            yield Text(self._index, text, pieces=pieces_of(characters))

    def _end_call(self, *, closed: bool, cut: bool = False) -> Iterator[Text | ToolCall]:
        raw, self._call, self._open = self._call, "", "normal"
        start, end = self._tokenizer.tool_call_start, self._tokenizer.tool_call_end
        partial = cut and bool(end)  # in formats without an end a call may be whole
        calls = self._parse(raw) if self._tools and not partial else None
        if calls is None:
            text = f"{start}{raw}{end if closed and end else ''}"
            yield from self._say()
            self._last = "said"
            yield Text(self._index, text, pieces=(Piece(text, "own"),))
            return
        self.calls += len(calls)
        self._unsaid, self._last = [], "called"
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
        name = str(call.get("id") or new_call_id())
        made = ToolCall(self._index, name, call["name"], json.dumps(arguments, ensure_ascii=False))
        # Clients read it as JSON, and send it back: Python's own reader takes more than they do.
        parse_json(made.arguments)
        check_json([made.id, made.name])
        return made


def pieces_of(characters: Sequence[_Sourced]) -> tuple[Piece, ...]:
    """Characters in a row from one source as one piece."""
    runs = groupby(characters, key=lambda entry: entry[1])
    return tuple(Piece("".join(one for one, _ in run), source) for source, run in runs)
