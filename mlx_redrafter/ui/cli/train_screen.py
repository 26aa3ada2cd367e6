"""What a training run shows: bars, figures as they come, and the result."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.table import Column

from ...training.record import TrainingCallback
from ..bars import StageBars, WordsColumn, bar_column
from ..fitting import Figures
from ..model_flags import chat_command
from ..output import make_console

if TYPE_CHECKING:
    from ...training.loop import Progress
    from ...training.options import TrainingOptions
    from ...training.record import TrainingReport

TRAINING = "training"


class TrainingScreen(TrainingCallback, StageBars):
    """Hears how a run goes, see :class:`TrainingCallback`; a context manager around the work."""

    def __init__(self) -> None:
        self._console = make_console()
        columns = (
            WordsColumn("{task.description}"),
            bar_column(self._console, 12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            WordsColumn("{task.fields[told]}", style="chat.note"),
        )
        StageBars.__init__(self, self._console, *columns, told="")
        self._step = self._steps = 0
        self.ending: BaseException | None = None

    def stop(self, end: BaseException) -> None:
        """End the run where everything is in order next.

        Args:
            end: What is raised there.
        """
        self.ending = end
        with suppress(OSError):  # the terminal may be gone
            self.note("Ending after the step under way; Ctrl-C again does not wait.")

    def reached(self) -> str:
        """Where the run stands, for a sentence."""
        return f" at step {self._step} of {self._steps}" if self._steps else ""

    def _obey(self) -> None:
        if self.ending is not None:
            raise self.ending

    def note(self, text: str) -> None:
        """Print a sentence above the bars."""
        self._console.print(text, style="chat.note", markup=False, soft_wrap=True)

    def stage(self, name: str, done: int, total: int) -> None:
        """Move a part's bar, adding it the first time."""
        if name == TRAINING:
            self._step, self._steps = done, total
        self._obey()
        self.move(name, done, total)

    def report(self, progress: Progress) -> None:
        """Show loss and speed beside the bar; print a line for an evaluation."""
        self._obey()
        told = f"loss {progress.loss:.3f}, {progress.positions_per_second:,.0f} tokens/s"
        self.tell(TRAINING, told=told)
        if progress.decoded is not None:
            self._console.print(_line(progress), markup=False, soft_wrap=True)


def _line(progress: Progress) -> str:
    decoded, held_out = progress.decoded, progress.held_out
    assert decoded is not None
    parts = [
        f"step {progress.step}: loss {progress.loss:.3f}",
        f"{decoded.tokens_per_step:.2f} tokens per step",
        f"accepted by depth {_shares(decoded.acceptance_by_depth)}",
    ]
    if held_out is not None:
        parts.append(f"top-1 {_shares(held_out.top1)}, top-5 {_shares(held_out.top5)}")
    return ", ".join(parts) + (" (best so far)" if progress.is_best else "")


def _shares(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def show_report(report: TrainingReport, options: TrainingOptions) -> None:
    """Print what came out and how to use it."""
    console = make_console()
    console.print(f"Written to {report.output}", markup=False, soft_wrap=True)
    headings = ("depth", "accepted", "top-1 agreement", "top-5 agreement")
    table = Figures(*headings, title=f"Step {report.best_step} of {report.steps}")
    columns = (
        report.decoded.acceptance_by_depth if report.decoded else (),
        report.held_out.top1 if report.held_out else (),
        report.held_out.top5 if report.held_out else (),
    )
    for depth in range(max(len(values) for values in columns)):
        cells = [f"{v[depth]:.1%}" if depth < len(v) else "" for v in columns]
        table.add_row(str(depth + 1), *cells)
    console.print(table)
    if report.decoded is not None:
        console.print(
            f"{report.decoded.tokens_per_step:.2f} tokens per step on {report.decoded.prompts} "
            f"held-out prompts; peak memory {report.peak_memory:.2f} GB"
        )
    console.print(_command(report.output, options), style="cyan", soft_wrap=True)


def _command(output: Path, options: TrainingOptions) -> str:
    """How to chat with what was made, as it can be copied into a shell."""
    words: list[object] = ["--trust-remote-code"] if options.trust_remote_code else []
    words += ["--adapter-path", options.adapter_path] if options.adapter_path else []
    if output.name == "drafter" and (output.parent / "config.json").is_file():
        return chat_command(output.parent, *words)
    words += ["--revision", options.revision] if options.revision else []
    return chat_command(options.model, "--drafter", output, *words)
