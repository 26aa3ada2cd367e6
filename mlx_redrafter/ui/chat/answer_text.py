"""An answer as screen lines: finished ones to print for good, an unfinished one to redraw."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells
from rich.text import Text

from ...system.visible import visible

TAB = 4
_WORD = re.compile(r"\s*\S+\s*")


def line_breaks(text: str, width: int) -> list[int]:
    """Where to break one line of text so that every piece fits.

    Greedy, so that adding text at the end never moves a break before the last one.

    Args:
        text: Text without newlines.
        width: Cells in a line.

    Returns:
        Offsets at which second and later lines begin.
    """
    breaks: list[int] = []
    column = 0
    for match in _WORD.finditer(text):
        word = match.group()
        bare = word.rstrip()
        length = cell_len(bare)
        if column and column + length > width:
            breaks.append(match.start())
            column = 0
        if length > width:
            *whole, rest = chop_cells(bare, width)
            start = match.start()
            for chunk in whole:
                start += len(chunk)
                breaks.append(start)
            column = cell_len(rest) + cell_len(word) - length
        else:
            column += cell_len(word)
    return breaks


class AnswerText:
    """Takes an answer piece by piece and gives out its lines as they are finished."""

    def __init__(self) -> None:
        self._pending = Text()
        self.any = False

    def feed(self, text: str, style: str, width: int) -> list[Text]:
        """Add a token's text; return the lines that it finished.

        Args:
            text: What the token adds.
            style: How it is shown.
            width: Cells in a line.
        """
        if not self.any:
            text = text.lstrip("\n")  # some templates begin answers with blank lines
        if not text:
            return []
        self.any = True
        self._pending.append(visible(text).replace("\t", " " * TAB), style)
        if "\n" not in text and cell_len(self._pending.plain) <= width:
            return []
        finished: list[Text] = []
        *logical, last = self._pending.split("\n", allow_blank=True)
        for line in logical:
            finished += self._pieces(line, width)
        *done, self._pending = self._pieces(last, width)
        finished += done
        for line in finished:
            line.rstrip()
        return finished

    @property
    def tail(self) -> Text:
        """The line that is not finished yet."""
        return self._pending

    @staticmethod
    def _pieces(line: Text, width: int) -> list[Text]:
        return list(line.divide(line_breaks(line.plain, width)))
