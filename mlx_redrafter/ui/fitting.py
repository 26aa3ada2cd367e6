"""Views in several widths: what a terminal shows whole, however few columns it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Wider than any view, so that measuring does not cut what it measures.
UNBOUNDED = 1 << 12
# Words in fewer columns are harder to read than below their label.
LEAST_WORDS = 16
GAP = 2


class FirstThatFits:
    """One of several drawings of the same: Rich would cut figures to make a wide one narrow.

    Args:
        *choices: From the widest to the narrowest, which is drawn where none fits.
    """

    def __init__(self, *choices: RenderableType):
        self._choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the first that fits."""
        for choice in self._choices[:-1]:
            if _width(console, options, choice) <= options.max_width:
                yield choice
                return
        yield self._choices[-1]


class Fields:
    """Labels with words beside them, or below them where that would leave little room for words.

    Args:
        rows: Labels and words; a row without a label goes on with the one above.
        style: Of the labels.
    """

    def __init__(self, rows: Iterable[tuple[str, str | Text]], style: str = ""):
        self._rows = [(label, _text(words)) for label, words in rows]
        self._style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw them side by side where that is readable."""
        widest = max((Text(label).cell_len for label, _ in self._rows), default=0)
        longest = max((words.cell_len for _, words in self._rows), default=0)
        room = options.max_width - widest - GAP
        if room >= min(LEAST_WORDS, longest):
            grid = Table.grid(padding=(0, GAP))
            grid.add_column(style=self._style, no_wrap=True)
            grid.add_column(overflow="fold")
            for label, words in self._rows:
                grid.add_row(label, words)
            yield grid
            return
        for label, words in self._rows:
            if label:
                yield Text(label, self._style)
            yield Padding(words, (0, 0, 0, GAP))


class Figures:
    """A table of figures, none of which is left out; a single column is folded where it has to be.

    Where it is too wide, it is drawn as several, one below the other: each has the first columns,
    which say what a row is of, and as many of the others as there is room for.

    Args:
        *headings: Of the columns; a column without a heading is left-aligned.
        keys: How many of the first columns stand in each part.
        fold: Cells to which the last of these may be folded.
        left: Headings of other columns that are left-aligned.
        **options: Of Rich's tables, where the whole fits.
    """

    def __init__(
        self,
        *headings: str,
        keys: int = 1,
        fold: int = UNBOUNDED,
        left: Sequence[str] = (),
        **options: Any,
    ):
        self._headings, self._keys, self._fold = list(headings), keys, fold
        self._left, self._options = ("", *left), options
        self._rows: list[tuple[tuple[str | Text, ...], str]] = []

    def add_column(self, heading: str) -> None:
        """Add a column; before any row."""
        self._headings.append(heading)

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add a row with a cell for each heading."""
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it whole if it fits, else in parts."""
        every = range(self._keys, len(self._headings))
        whole = self._drawn(every, **self._options)
        if _width(console, options, whole) <= options.max_width:
            yield whole
            return
        title = self._options.get("title")
        if title is not None:
            yield Text(title, self._options.get("title_style") or "table.title")
        for part in self._parts(console, options):
            yield self._drawn(part, alone=len(part) == 1, **self._tight())

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the whole is."""
        whole = self._drawn(range(self._keys, len(self._headings)), **self._options)
        return Measurement.get(console, options, whole)

    def _tight(self) -> dict[str, Any]:
        kept = {name: self._options[name] for name in ("header_style",) if name in self._options}
        return {**kept, "box": None, "pad_edge": False, "collapse_padding": True}

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[list[int]]:
        """Columns that fit together, at least one at a time."""
        part: list[int] = []
        for column in range(self._keys, len(self._headings)):
            drawn = self._drawn([*part, column], fold=self._fold, **self._tight())
            if part and _width(console, options, drawn) > options.max_width:
                yield part
                part = []
            part.append(column)
        yield part

    def _drawn(
        self, columns: Sequence[int], fold: int | None = None, alone: bool = False, **options: Any
    ) -> Table:
        """The keys' columns and others; the last key is as wide as the others leave it.

        Args:
            columns: The others' places.
            fold: Cells of the last key, for measuring.
            alone: Whether the only other column may be folded, too.
            **options: Rich's.
        """
        table = Table(title_justify="left", **options)
        shown = [*range(self._keys), *columns]
        for place in shown:
            heading, last_key = self._headings[place], place == self._keys - 1
            table.add_column(
                heading,
                justify="left" if heading in self._left else "right",
                no_wrap=not (last_key or (alone and place >= self._keys)),
                overflow="fold",
                max_width=fold if last_key else None,
            )
        for cells, style in self._rows:
            table.add_row(*(cells[place] for place in shown), style=style)
        return table


def _width(console: Console, options: ConsoleOptions, view: RenderableType) -> int:
    """Cells that a view takes where it has room."""
    unbounded = options.update(max_width=UNBOUNDED)
    return Measurement.get(console, unbounded, view).maximum


def _text(words: str | Text) -> Text:
    return words if isinstance(words, Text) else Text(words)
