"""The chat without a terminal: plain text in, plain text out, no control codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from ..theme import CONTINUATION, PROMPT, THEME
from .answer_text import visible
from .lines import clean, join_lines
from .session import Answer, Session
from .status import ending, summary

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse

WIDTH = 100


class PlainFrontEnd:
    """Lines from stdin, text to stdout, complaints to stderr.

    Args:
        summaries: Whether a line of figures follows each answer.
    """

    def __init__(self, summaries: bool = True):
        self._summaries = summaries
        # Environment variables may make Rich believe in a terminal; a pipe stays a pipe.
        self._console = Console(
            theme=THEME, width=WIDTH, force_terminal=False, color_system=None, highlight=False
        )

    @property
    def attended(self) -> bool:
        """Whether stdin is a terminal, though stdout is none."""
        return sys.stdin.isatty()

    def welcome(self, _session: Session) -> None:
        """Nothing: the output is the answers."""

    def read(self) -> str:
        """The next line of stdin, with those it is continued on."""
        return clean(join_lines(self._line))

    def _line(self, first: bool) -> str:
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT if first else CONTINUATION)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def stream(self, _session: Session, responses: Iterable[GenerationResponse]) -> None:
        """Print text as it comes."""
        begun = False
        for response in responses:
            text = response.text if begun else response.text.lstrip("\n")
            if text:
                begun = True
                sys.stdout.write(visible(text))
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def conclude(self, session: Session, answer: Answer) -> None:
        """Print the figures, if wanted, and why the answer was cut, if it was."""
        if self._summaries:
            print(f"[{summary(answer, session.speedup(answer.tps))}]\n", flush=True)
        reason = ending(answer, session.settings.max_tokens)
        if reason:
            self.complain(reason)

    def show(self, view: RenderableType) -> None:
        """Print a table or a tree."""
        self._console.print(view)
        sys.stdout.flush()

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        print(visible(sentence), flush=True)

    def complain(self, sentence: str) -> None:
        """Print a sentence to stderr."""
        print(visible(sentence), file=sys.stderr, flush=True)

    @contextmanager
    def busy(self, _words: str) -> Iterator[None]:
        """Nothing is shown: there is nobody to wait."""
        yield
