"""The chat without a terminal: plain text in, plain text out, no control codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import RenderableType

from ...system.visible import whole_characters
from ...text.passages import THOUGHTS
from ..output import complain, make_console, say, write
from ..theme import CONTINUATION, PROMPT
from ..typed import heard_while_waiting
from .answer import Answer
from .lines import join_lines
from .session import Session
from .status import afterwords, summary

if TYPE_CHECKING:
    from ...text.passages import Passages
    from ...text.responses import GenerationResponse

WIDTH = 100


class PlainFrontEnd:
    """Lines from stdin, text to stdout, complaints and figures to stderr.

    Args:
        silent: Whether nothing is shown but complaints, since JSON follows on stdout.
    """

    def __init__(self, silent: bool = False):
        self._silent = silent
        self._console = make_console(plain_width=WIDTH)

    @property
    def attended(self) -> bool:
        """Whether stdin is a terminal, though stdout is none."""
        return sys.stdin.isatty()

    def welcome(self, _session: Session) -> None:
        """Nothing: the output is the answers."""

    def read(self) -> str:
        """The next line of stdin, with those it is continued on."""
        return whole_characters(join_lines(self._line))

    def _line(self, first: bool) -> str:
        asked = sys.stdin.isatty()
        if asked:
            write(PROMPT if first else CONTINUATION, errors=True)
        line = ""
        try:
            with heard_while_waiting():
                line = sys.stdin.readline()
        finally:
            if asked and not line:
                write("\n", errors=True)  # after Ctrl-C and Ctrl-D what comes next begins a line
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def stream(self, session: Session, responses: Iterable[GenerationResponse]) -> None:
        """Print text as it comes; thoughts with the model's own markers, or not at all."""
        begun = False
        for text in self._texts(session, responses):
            text = text if begun else text.lstrip("\n")
            if text and not self._silent:
                begun = True
                write(text)
        if not self._silent:
            write("\n")

    @staticmethod
    def _texts(session: Session, responses: Iterable[GenerationResponse]) -> Iterator[str]:
        if session.settings.thoughts:
            yield from (response.text for response in responses)
            return
        passages: Passages | None = None
        for response in responses:
            passages = passages or session.passages()
            yield from (part.text for part in passages.feed(response.text) if part.kind != THOUGHTS)
        if passages is not None:
            yield from (part.text for part in passages.flush() if part.kind != THOUGHTS)

    def conclude(self, session: Session, answer: Answer) -> None:
        """Print the figures, and why the answer was cut, if it was, to stderr."""
        if self._silent:
            return
        complain(f"[{summary(answer, session.ratio(answer), session.planning)}]")
        for sentence in afterwords(session, answer):
            complain(sentence)

    def show(self, view: RenderableType) -> None:
        """Print a table or a tree."""
        self._console.print(view)
        sys.stdout.flush()

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        say(sentence)

    def complain(self, sentence: str) -> None:
        """Print a sentence to stderr."""
        complain(sentence)

    def confirm(self, _question: str) -> bool:
        """Nobody can be asked."""
        return False

    @contextmanager
    def progress(self, _words: str) -> Iterator[Callable[[int, int], None]]:
        """Nothing is shown: there is nobody to wait."""
        yield lambda _done, _total: None

    @contextmanager
    def busy(self, _words: str) -> Iterator[None]:
        """Nothing is shown: there is nobody to wait."""
        yield
