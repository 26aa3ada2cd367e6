"""One benchmark command: its flags, where it shows things, and what it writes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ending import in_main_thread
from ..together import Together

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from ...benchmark.environment import Environment
    from ...benchmark.writing import Report

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One command as it was asked for.

    Attributes:
        command: Its name.
        options: The flags.
        arguments: The command line.
        console: Where results are shown.
        screen: Where progress is shown.
        group: The processes that run it.
    """

    command: str
    options: Any
    arguments: Sequence[str]
    console: Console
    screen: Console
    group: Together

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""
        from ...text.sharding import fail_together

        with fail_together(self.group.ranks):
            if self.group.leads:
                self._check_writable()

    def _check_writable(self) -> None:
        from ...benchmark.plots import check_matplotlib
        from ...benchmark.writing import check_writable

        paths = [self.options.json, self.options.csv, getattr(self.options, "report", None)]
        if self.options.output is not None:
            stem = self.options.output / self.command
            paths += map(stem.with_suffix, (".json", ".csv", ".png"))
        check_writable(*paths)
        if self.options.output is not None and not self.options.no_plots:
            check_matplotlib()

    def environment(self) -> Environment:
        """The circumstances, as they are now."""
        from ...benchmark.environment import environment

        return environment(self.arguments)

    def write(self, report: Report) -> None:
        """Write a report as JSON and CSV to wherever they are wanted."""
        from ...benchmark.writing import write_report

        options = self.options
        if not self.group.leads:
            return
        write_report(report, options.json, options.csv)
        if options.output is not None:
            stem = options.output / self.command
            write_report(report, stem.with_suffix(".json"), stem.with_suffix(".csv"))

    def draw(self, plot: Callable[[Any, Path], list[Path]], report: Any, place: str = "") -> bool:
        """Draw the pictures of a report, where they are wanted, in a ``place`` below.

        Returns:
            Whether Ctrl-C ended that: what was measured is shown all the same.
        """
        wanted = self.options.output is not None and not self.options.no_plots
        try:
            if wanted and self.group.leads:
                plot(report, self.options.output / place)
        except KeyboardInterrupt:
            return True
        return False

    @contextmanager
    def finishing(self) -> Iterator[Callable[[], bool]]:
        """Inside the block Ctrl-C waits for its end, unless it is pressed twice.

        Gives what tells whether it was pressed. Of several processes it waits in any case, until
        all have come equally far.
        """
        times = 0

        def note(_number: int, _frame: FrameType | None) -> None:
            nonlocal times
            times += 1
            if times > 1:
                raise KeyboardInterrupt

        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if ignored or self.group.ranks is not None or not in_main_thread():
            yield lambda: False
            return
        before = signal.signal(signal.SIGINT, note)
        try:
            yield lambda: times > 0
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def progress(self, words: str) -> Iterator[Progress]:
        """A bar on the error stream while the block runs."""
        from rich.progress import Progress, TimeRemainingColumn

        from ..bars import WordsColumn, bar_column

        columns = (WordsColumn(words), bar_column(self.screen), TimeRemainingColumn())
        with Progress(*columns, console=self.screen, transient=True) as bar:
            task = bar.add_task("", total=None)

            def note(done: int, total: int) -> None:
                self.group.check()
                bar.update(task, completed=done, total=total)

            yield note
