"""Everything that is printed: one place, which makes it visible first."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..errors import RedrafterError
from ..system.visible import visible, visible_json, visible_line
from .theme import THEME

SIZES = ("COLUMNS", "LINES")
# Marks of the program's own, where an encoding has only ASCII.
ALIKE = dict(zip("×→✓·—–…␣⇥↵█▇▆▅▄▃▂▁▉▊▋▌▍▎▏", "x>+---._>/####==__####|||", strict=True))
LIKENESSES = "mlx_redrafter.likenesses"


class SafeConsole(Console):
    """Rich's console, through which no text reaches the terminal with orders in it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of a renderable; control segments are Rich's own and stay as they are."""
        for segment in super().render(renderable, options):
            text = visible(segment.text)
            if segment.control or text == segment.text:
                yield segment
            else:
                yield Segment(text, segment.style)

    def on_broken_pipe(self) -> None:
        """Nobody reads: no error, as :mod:`.entry` has it, where Rich would leave with code 1."""
        self.quiet = True
        if not self.stderr:  # without its bars and complaints the program goes on
            raise BrokenPipeError


def make_console(
    *, errors: bool = False, plain_width: int | None = None, quiet: bool = False
) -> Console:
    """A console on stdout or stderr in the project's colours; square brackets are plain text.

    Args:
        errors: Whether it is stderr's.
        plain_width: Columns of text without any control codes; None for what the stream can do.
        quiet: Whether it shows nothing, as on all ranks of a run but the first.
    """
    if plain_width is None:
        # Rich believes COLUMNS=0, as terminals of unknown size have it, and would show nothing.
        known = {k: v for k, v in os.environ.items() if k not in SIZES or v.strip("0")}
        return SafeConsole(
            theme=THEME, highlight=False, markup=False, emoji=False, stderr=errors, quiet=quiet,
            _environ=known,
        )  # fmt: skip
    # Environment variables may make Rich believe in a terminal; a pipe stays a pipe.
    return SafeConsole(
        theme=THEME,
        highlight=False,
        markup=False,
        emoji=False,
        stderr=errors,
        width=plain_width,
        force_terminal=False,
        color_system=None,
    )


def write(text: str, *, errors: bool = False) -> None:
    """Write text as it stands, without a newline of its own, and flush."""
    stream = sys.stderr if errors else sys.stdout
    stream.write(visible(text))
    stream.flush()


def say(sentence: str) -> None:
    """Print a line on stdout."""
    write(sentence + "\n")


def complain(sentence: str) -> None:
    """Print one line on stderr, whatever line breaks the sentence brings along.

    Where stderr takes nothing, what else the program does, and its exit code, stay the same.
    """
    with suppress(OSError, ValueError):
        write(visible_line(sentence) + "\n", errors=True)


def write_json(value: Any) -> None:
    """Print one line of JSON on stdout."""
    sys.stdout.write(visible_json(value) + "\n")
    sys.stdout.flush()


def open_streams() -> None:
    """Give a program that was started without stdin or stderr an empty one.

    Raises:
        RedrafterError: If it was started without stdout: there is nowhere to write to.
    """
    # In this order: a file that is opened takes the place of the first stream that is closed.
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    closed = sys.stdout is None
    if closed:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if closed:
        raise RedrafterError("standard output is closed: give the answer somewhere to go.")


def forgive_encodings() -> None:
    """Show what a stream's encoding lacks as something like it, or '?', instead of failing."""
    codecs.register_error(LIKENESSES, _alike)
    streams: tuple[TextIO, ...] = (sys.stdin, sys.stdout, sys.stderr)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace" if stream is sys.stdin else LIKENESSES)


def _alike(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks; as many, so that columns stay in line."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(ALIKE.get(character, "?") for character in lacking), error.end
