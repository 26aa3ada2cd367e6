"""The chat on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.text import Text

from ...system.visible import visible, visible_line
from ...text.passages import THOUGHTS
from ..bars import WordsColumn, bar_column
from ..typed import typed_line
from . import views
from .answer import Answer
from .answer_text import AnswerText
from .interrupt import suspendable
from .session import Session
from .status import afterwords, read, status_line, summary

if TYPE_CHECKING:
    from ...text.passages import Passages
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
        passages: Passages | None = None
        try:
            with self._own_terminal(live):
                live.update(Text("reading the conversation ...", "chat.note"), refresh=True)
                drawn = 0.0
                for response in responses:
                    passages = passages or session.passages()
                    finished += self._take(session, response, passages, text)
                    now = time.perf_counter()
                    if now - drawn < FRAME_SECONDS:
                        continue
                    drawn = now
                    folded = passages.thinking and not session.settings.thoughts
                    tail = Text("thinking ...", "answer.thought") if folded else text.tail
                    self._draw(live, session, response, finished, tail)
                    finished.clear()
        finally:
            if text.any:
                self._print_lines([*finished, text.tail])

    def _take(
        self,
        session: Session,
        response: GenerationResponse,
        passages: Passages,
        text: AnswerText,
    ) -> list[Text]:
        """Feed a response's passages to the text; return the lines that they finished."""
        lines: list[Text] = []
        parts = passages.feed(response.text)
        if response.finish_reason is not None:
            parts += passages.flush()
        for part in parts:
            if part.kind != THOUGHTS:
                lines += text.feed(part.text, mark(session, response), self._width)
            elif session.settings.thoughts:
                lines += text.feed(part.text, "answer.thought", self._width)
        return lines

    @contextmanager
    def _own_terminal(self, live: Live) -> Iterator[None]:
        """Keys are kept quiet and ``live`` is drawn; Ctrl-Z gives the terminal back meanwhile."""
        keys = QuietKeys()

        def pause() -> None:
            keys.loud()
            self._console.show_cursor(True)

        def resume() -> None:
            keys.quiet()
            self._console.show_cursor(False)
            live.refresh()

        with keys, live, suspendable(pause, resume):
            yield

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
        words = summary(answer, session.ratio(answer), session.planning)
        self._console.print()
        self._console.print(Text(words, "chat.note"))
        for sentence in afterwords(session, answer):
            self._console.print(Text(sentence, "chat.note"))
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
        self._errors.print(Text(visible_line(sentence), "chat.error"))

    def confirm(self, question: str) -> bool:
        """Ask the person; everything but yes is no."""
        try:
            answer = typed_line(f"{visible_line(question)} [y/N] ")
        except EOFError:
            self._console.print()
            return False
        except KeyboardInterrupt:
            self._console.print()  # the next prompt begins a line
            raise
        return answer.strip().lower() in ("y", "yes")

    @contextmanager
    def progress(self, words: str) -> Iterator[Callable[[int, int], None]]:
        """Show ``words`` and a bar from when it is first told something until the block ends.

        Drawn only when told, since what it waits for is timed.
        """
        bar = Progress(
            WordsColumn("{task.description}", style="chat.note"),
            bar_column(self._console),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = bar.add_task(words, total=None, visible=False)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True, refresh=True)

        with self._own_terminal(bar.live):
            yield tell

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
        with self._own_terminal(line):
            line.refresh()
            yield


def _line(text: Text) -> Text:
    """A line that was broken to the width already; a changed width must not break it again."""
    copy = text.copy()
    copy.no_wrap, copy.overflow = True, "crop"
    return copy


def mark(session: Session, response: GenerationResponse) -> str:
    """The style of a token's text: who supplied it, where the header's legend tells them apart."""
    if not (session.settings.marks and session.drafts):
        return "answer.plain"
    styles = {"guessed": "answer.drafted", "copied": "answer.copied", "own": "answer.target"}
    return styles[response.source]


class QuietKeys:
    """Keeps what is typed meanwhile from being echoed into the drawing; it is read afterwards."""

    def __init__(self) -> None:
        self._handle: int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> None:
        termios: Any
        try:
            import termios

            handle = sys.stdin.fileno()
            if not in_foreground(handle):
                return
            self._before = termios.tcgetattr(handle)
        except (ImportError, OSError, ValueError, termios.error):
            return
        self._handle = handle
        self.quiet()

    def __exit__(self, *_: object) -> None:
        self.loud()

    def quiet(self) -> None:
        """Stop the echo."""
        silent = [*self._before]
        if self._handle is not None:
            import termios

            silent[3] &= ~termios.ECHO
            self._set(silent)

    def loud(self) -> None:
        """Let keys be echoed as they were before."""
        if self._handle is not None:
            self._set(self._before)

    def _set(self, attributes: list[Any]) -> None:
        import termios

        assert self._handle is not None
        if not in_foreground(self._handle):
            return
        with suppress(termios.error):
            termios.tcsetattr(self._handle, termios.TCSANOW, attributes)


def in_foreground(terminal: int) -> bool:
    """Whether this process may set a terminal: one in the background is stopped when it tries."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # there is no terminal, or none that controls this process
        return True
