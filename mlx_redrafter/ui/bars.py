"""Progress bars: one while something is done, or one for each stage as it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

Bars = TypeVar("Bars", bound="StageBars")


class WordsColumn(TextColumn):
    """Words beside a bar, in several lines where the terminal has too few columns for one.

    Args:
        text: The words, in Rich's format for tasks.
        style: Of the words.
    """

    def __init__(self, text: str, style: str = "none"):
        super().__init__(text, style=style, table_column=Column(overflow="fold"))


def bar_column(console: Console, widest: int = 40) -> BarColumn:
    """A bar that leaves a terminal of few columns to the words beside it.

    Args:
        console: Where it is drawn.
        widest: Cells of it where there is room.
    """
    return BarColumn(bar_width=max(4, min(widest, console.width // 4)))


@contextmanager
def passing_bar(
    console: Console, words: str, check: Callable[[], None]
) -> Iterator[Callable[[int, int], None]]:
    """Show ``words`` and a bar until the block ends; gives what is told (done, to do).

    Args:
        console: Where it is drawn.
        words: What is done.
        check: Called whenever something is told; what it raises ends the work.
    """
    columns = (WordsColumn(words), bar_column(console), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(done: int, total: int) -> None:
            check()
            bar.update(task, completed=done, total=total)

        yield tell


class StageBars:
    """One bar a stage; a context manager around the work.

    Args:
        console: Where they are drawn.
        columns: Rich's columns of a bar; by default the stage, the share done and the time left.
        fields: First values of the columns' own fields.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, **fields: Any):
        usual = (
            WordsColumn("{task.description}"),
            bar_column(console),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*(columns or usual), console=console)
        self._fields = fields
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self: Bars) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tasks:  # or an empty line would be shown
            self._bars.stop()

    def move(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar, adding it the first time."""
        total = max(total, 1)
        if stage not in self._tasks:
            self._bars.start()  # not before there is a bar, or an empty line would be shown
            self._tasks[stage] = self._bars.add_task(stage, total=total, **self._fields)
        task = self._tasks[stage]
        if done < self._bars.tasks[task].completed:
            self._bars.reset(task)  # a stage that begins again, such as an evaluation
        self._bars.update(task, completed=done, total=total)

    def tell(self, stage: str, **fields: Any) -> None:
        """Set fields of a stage's bar, where it has one."""
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], **fields)
