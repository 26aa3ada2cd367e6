"""One benchmark command: its flags, where it shows things, and what it writes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RedrafterError
from ..ending import in_main_thread
from ..together import Together

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from ...benchmark.environment import Environment
    from ...benchmark.writing import Report


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
        unwritten: What went wrong with each file at the last try.
    """

    command: str
    options: Any
    arguments: Sequence[str]
    console: Console
    screen: Console
    group: Together
    unwritten: dict[Path, RedrafterError] = field(default_factory=dict)

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

        places = [(self.options.json, self.options.csv)]
        if self.options.output is not None:
            stem = self.options.output / self.command
            places.append((stem.with_suffix(".json"), stem.with_suffix(".csv")))
        for json_path, csv_path in places if self.group.leads else ():
            with self.trying(json_path):
                write_report(report, json_path, None)
            with self.trying(csv_path):
                write_report(report, None, csv_path)

    def write_page(self, make: Callable[[], str]) -> None:
        """Write the page of results that ``make`` makes, where one is wanted."""
        from ...benchmark.writing import write_text

        if self.options.report is not None and self.group.leads:
            with self.trying(self.options.report):
                write_text(self.options.report, make())

    @contextmanager
    def trying(self, path: Path | None) -> Iterator[None]:
        """Keep for later that a file could not be written: what was measured is worth more."""
        if path is None:
            yield
            return
        self.unwritten.pop(path, None)
        try:
            yield
        except RedrafterError as error:
            self.unwritten[path] = error

    def require_written(self) -> None:
        """At the end, when everything else was written and shown.

        Raises:
            RedrafterError: If a file could not be written, not at the last try either.
        """
        for error in self.unwritten.values():
            raise error

    def draw(self, plot: Callable[[Any, Path], list[Path]], report: Any, place: str = "") -> bool:
        """Draw the pictures of a report, where they are wanted, in a ``place`` below.

        Returns:
            Whether Ctrl-C ended that: what was measured is shown all the same.
        """
        wanted = self.options.output is not None and not self.options.no_plots
        try:
            if wanted and self.group.leads:
                with self.trying(self.options.output / place):
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

    def progress(self, words: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A bar on the error stream while the block runs."""
        from ..bars import passing_bar

        return passing_bar(self.screen, words, self.group.check)
