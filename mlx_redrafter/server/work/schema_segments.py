"""An answer that follows a schema, taken apart by its tokens: JSON may hold any marker as text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...engine.step import TokenSource
from ...text.course import Course
from ..protocol.answer import Text, ToolCall
from .segments import Segments, pieces_of

_Kind = Literal["thought", "mark", "call", "said"]


class SchemaSegments:
    """Takes such an answer as it comes, as :class:`Segments` takes others.

    Thoughts end where the constraint lets JSON begin; only a call that it let in is one; all else
    is said as it stands.

    Args:
        tokenizer: Knows the markers.
        index: Of the answer.
        tools: Those offered, for the parser.
        course: Where the answer begins.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        index: int,
        tools: list[dict[str, Any]],
        course: Course,
    ):
        self._index = index
        self._course = course
        self._calls = Segments(tokenizer, index, tools, "tool")
        self._open: list[int] = []  # characters of tokens that may belong to a mark
        self._kinds: deque[tuple[_Kind, int]] = deque()  # of so many characters, each
        self._text: deque[tuple[str, TokenSource]] = deque()  # whose kind is not known yet

    @property
    def calls(self) -> int:
        """Calls made so far."""
        return self._calls.calls

    @property
    def reasons(self) -> bool:
        """Whether what comes is reasoning."""
        return self._course.stage == "thinks"

    def follow(self, token: int | None, characters: int) -> None:
        """Hear of the answer's next token, before its text comes.

        Args:
            token: It; None for what is left of the text at its end.
            characters: Of the text, that it made certain.
        """
        before, self._open = self._course, [*self._open, characters]
        after = self._course = before if token is None else before.after(token)
        if before.stage == "thinks":
            marks = len(before.thoughts_end)
            if after.stage == "thinks":
                self._decide("thought", len(self._open) - marks + 1)
            else:
                self._decide("thought", len(self._open) - marks)
                self._decide("mark", marks)
        elif before.stage == "calls":
            self._decide("call", 1)
        elif after.stage == "calls":
            self._decide("mark", len(self._open))
        elif after.stage == "answers":
            self._decide("said", len(self._open))

    def _decide(self, kind: _Kind, tokens: int) -> None:
        tokens = max(0, tokens)
        self._kinds.append((kind, sum(self._open[:tokens])))
        self._open = self._open[tokens:]

    def feed(self, text: str, source: TokenSource) -> Iterator[Text | ToolCall]:
        """Take more text, or none."""
        self._text.extend((character, source) for character in text)
        while self._kinds and (self._text or not self._kinds[0][1]):
            kind, count = self._kinds.popleft()
            part = [self._text.popleft() for _ in range(min(count, len(self._text)))]
            if len(part) < count:
                self._kinds.appendleft((kind, count - len(part)))
            yield from self._part(kind, part)

    def _part(
        self, kind: _Kind, part: Sequence[tuple[str, TokenSource]]
    ) -> Iterator[Text | ToolCall]:
        text = "".join(character for character, _ in part)
        if kind == "call":
            for source, run in groupby(part, key=lambda entry: entry[1]):
                yield from self._calls.feed("".join(one for one, _ in run), source)
        elif kind != "mark" and text:
            yield Text(self._index, text, kind == "thought", pieces_of(part))

    def finish(self, *, cut: bool = False) -> Iterator[Text | ToolCall]:
        """Take the end of the text.

        Args:
            cut: Whether the model had more to say.
        """
        self._decide("thought" if self.reasons else "said", len(self._open))
        yield from self.feed("", "own")
        if self._course.stage == "calls":
            yield from self._calls.finish(cut=cut)
