"""Reading lines from a terminal: editing, history, completion, several lines at once."""

from __future__ import annotations

import json
import os
import re
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Protocol

from ...errors import RedrafterError
from ...system.directories import made_directory
from ...system.files import is_file, local_path
from ...system.visible import whole_characters
from ..theme import CONTINUATION, PROMPT
from ..typed import typed_line

HISTORY_SIZE = 1000
HISTORY_BYTES = 1 << 22  # of the file's end, which is all that is read
# Lines of a paste follow one another faster than anyone types.
PASTE_GAP_SECONDS = 0.02
_ESCAPE = re.compile(r"(\x1b\[[0-9;]*m)")


def history_path() -> Path | None:
    """Where questions of earlier days are kept; None if there is no home directory."""
    with suppress(RuntimeError):
        return Path.home() / ".local" / "state" / "mlx-redrafter" / "chat_history"
    return None


class LineReader(Protocol):
    """Reads one line; ``first`` is false where it continues another."""

    def __call__(self, first: bool, /) -> str:
        """The line without its newline."""


class LineEditor:
    """Questions and commands from a person at a terminal.

    Args:
        words: What Tab completes at the beginning of a line.
        history: File of earlier lines, one JSON string each; failures are ignored.
        prompt: The prompt with its colours.
    """

    def __init__(self, words: Sequence[str], history: Path | None, prompt: str = PROMPT):
        self._words = tuple(words)
        self._history = history
        self._prompt = prompt
        self._readline = _import_readline()
        self._pastes_whole = False
        if self._readline is not None:
            self._set_up(self._readline)

    def _set_up(self, readline: ModuleType) -> None:
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
            self._prompt = _ESCAPE.sub("", self._prompt)  # it would count escapes as columns
        else:
            readline.parse_and_bind("tab: complete")
            # Python switches it off; with it a paste is one line that contains newlines.
            readline.parse_and_bind("set enable-bracketed-paste on")
            self._pastes_whole = True
            self._prompt = _ESCAPE.sub("\x01\\1\x02", self._prompt)
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        readline.set_auto_history(False)
        for line in load_history(self._history):
            _add_history(readline, line)

    def _complete(self, text: str, state: int) -> str | None:
        assert self._readline is not None
        line = self._readline.get_line_buffer()
        if self._readline.get_begidx() == 0:
            matches = [word + " " for word in self._words if text and word.startswith(text)]
        elif line.startswith(("/save ", "/load ")):
            matches = complete_path(text)
        else:
            matches = []
        return matches[state] if state < len(matches) else None

    def read(self) -> str:
        """One question or command; a backslash at the end of a line asks for another line.

        Raises:
            EOFError: On Ctrl-D.
            KeyboardInterrupt: On Ctrl-C.
        """
        text = whole_characters(join_lines(self._line))
        if text.strip():
            self._remember(text)
        return text

    def _line(self, first: bool) -> str:
        line = typed_line(self._prompt if first else CONTINUATION)
        if self._pastes_whole or self._readline is None:
            return line
        while select.select([sys.stdin], [], [], PASTE_GAP_SECONDS)[0]:
            try:
                line += "\n" + typed_line()
            except EOFError:
                break
        return line

    def _remember(self, text: str) -> None:
        readline = self._readline
        if readline is None:
            return
        length = readline.get_current_history_length()
        with suppress(UnicodeError):
            if length and readline.get_history_item(length) == text:
                return
        _add_history(readline, text)
        append_history(self._history, text)


def join_lines(next_line: LineReader) -> str:
    """Lines up to one that does not end with a backslash, the backslashes taken off."""
    lines = [next_line(True)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(next_line(False))
        except EOFError:
            break
    return "\n".join(lines)


def complete_path(text: str) -> list[str]:
    """Files and directories whose names begin with ``text``."""
    head, slash, start = text.rpartition("/")
    try:
        directory = local_path(head + slash) if slash else Path()
        entries = sorted(e for e in directory.iterdir() if e.name.startswith(start))
    except (OSError, RedrafterError):
        return []
    return [head + slash + e.name + ("/" if e.is_dir() else "") for e in entries]


def load_history(path: Path | None) -> list[str]:
    """The latest lines of earlier sessions; none where the file cannot be read."""
    if path is None or not is_file(path):
        return []
    lines: list[str] = []
    with suppress(OSError, ValueError):
        # Other line ends may stand inside of JSON strings.
        for entry in _end_of(path).rstrip("\n").split("\n")[-HISTORY_SIZE:]:
            with suppress(ValueError, RecursionError):
                line = json.loads(entry)
                lines += [line] if isinstance(line, str) else []
    return lines


def _end_of(path: Path) -> str:
    """The last part of a text file; it may begin in the middle of a line."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - HISTORY_BYTES))
        return file.read(HISTORY_BYTES).decode("utf-8", "replace")


def append_history(path: Path | None, line: str) -> None:
    """Add a line, at once so that it outlives a crash; failures are ignored."""
    if path is None:
        return
    with suppress(OSError), made_directory(path.parent):
        new = not path.exists()
        with path.open("ab+") as file:
            if new:
                path.chmod(0o600)  # questions are private
            written = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            file.write(written if _is_whole(file) else b"\n" + written)


def _is_whole(file: BinaryIO) -> bool:
    """Whether a file ends with its last line; a disk that was full leaves a part of one."""
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _add_history(readline: ModuleType, line: str) -> None:
    """Remember a line, unless the locale has no bytes for it, as LC_ALL=C has none for an é."""
    with suppress(UnicodeError):
        readline.add_history(line)


def _import_readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline
