"""The chat on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from . import views
from .answer_text import AnswerText, visible
from .session import Answer, Session
from .status import ending, read, status_line, summary

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse

# Drawing more often costs decoding speed and nobody sees it.
FRAME_SECONDS = 1 / 12


class ScreenFrontEnd:
    """A terminal drawn with Rich.

    Args:
        console: Where to draw.
        errors: Where to complain.
        read_line: Reads a question or command; see :class:`~.frontend.FrontEnd`.
    """

    def __init__(self, console: Console, errors: Console, read_line: Callable[[], str]):
        self._console = console
        self._errors = errors
        self._read_line = read_line

    @property
    def attended(self) -> bool:
        """Always."""
        return True

    @property
    def _width(self) -> int:
        """Cells for text; one is spared where the terminal finds a character wider than Rich."""
        return max(1, self._console.width - 1)

    def welcome(self, session: Session) -> None:
        """Draw the header."""
        self._console.print(views.header(session))
        self._console.print()

    def read(self) -> str:
        """A question or command, edited by the person."""
        try:
            return self._read_line()
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            raise

    def stream(self, session: Session, responses: Iterable[GenerationResponse]) -> None:
        """Draw an answer while it comes.

        Finished lines are printed once, for good; only the last line and the figures are redrawn,
        so nothing flickers and the scrollback holds the answer once, however long it is.
        """
        console, text = self._console, AnswerText()
        finished: list[Text] = []
        console.print()
        live = Live(console=console, auto_refresh=False, transient=True)
        try:
            with quiet_keys(), live:
                live.update(Text("reading the conversation ...", "chat.note"), refresh=True)
                drawn = 0.0
                for response in responses:
                    finished += text.feed(response.text, response.from_draft, self._width)
                    now = time.perf_counter()
                    if now - drawn < FRAME_SECONDS:
                        continue
                    drawn = now
                    self._draw(live, session, response, finished, text.tail)
                    finished.clear()
        finally:
            if text.any:
                self._print_lines([*finished, text.tail])

    def _draw(
        self,
        live: Live,
        session: Session,
        response: GenerationResponse,
        finished: list[Text],
        tail: Text,
    ) -> None:
        figures = status_line(read(session, response), self._width)
        # First the live part, which printing above it draws again as it was last drawn.
        live.update(Group(_line(tail), Text(), figures), refresh=True)
        if finished:
            self._print_lines(finished)

    def _print_lines(self, lines: list[Text]) -> None:
        self._console.print(Group(*map(_line, lines)))

    def conclude(self, session: Session, answer: Answer) -> None:
        """Draw the figures in one line, and why the answer was cut, if it was."""
        words = summary(answer, session.speedup(answer.tps))
        self._console.print()
        self._console.print(Text(words, "chat.note"))
        reason = ending(answer, session.settings.max_tokens)
        if reason:
            self._console.print(Text(reason, "chat.note"))
        self._console.print()

    def show(self, view: RenderableType) -> None:
        """Draw a table or a tree."""
        self._console.print(view)
        self._console.print()

    def say(self, sentence: str) -> None:
        """Confirm something."""
        self._console.print(Text(visible(sentence), "chat.note"))

    def complain(self, sentence: str) -> None:
        """Tell what was wrong."""
        self._errors.print(Text(visible(sentence), "chat.error"))

    @contextmanager
    def busy(self, words: str) -> Iterator[None]:
        """Show ``words`` until the block ends; still, since what it waits for may be timed."""
        line = Live(
            Text(words, "chat.note"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with quiet_keys(), line:
            line.refresh()
            yield


def _line(text: Text) -> Text:
    """A line that was broken to the width already; a changed width must not break it again."""
    copy = text.copy()
    copy.no_wrap, copy.overflow = True, "crop"
    return copy


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keep what is typed meanwhile from being echoed into the drawing; it is read afterwards."""
    termios: Any
    try:
        import termios

        handle = sys.stdin.fileno()
        before = termios.tcgetattr(handle)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSANOW, before)
