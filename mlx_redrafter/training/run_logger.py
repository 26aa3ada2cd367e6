"""A run's reports: logged, passed on, and at the end summed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from .callback import TrainingCallback
from .decoded import DecodedFigures
from .disk import DiskError
from .evaluation import Agreement
from .loop import Progress
from .output import RunPaths
from .report import RunLog, TrainingReport, plot_curves
from .sizes import DraftSizes


class RunLogger:
    """Keeps the log of a run, and passes its reports on.

    Args:
        paths: Where the run keeps what.
        callback: Hears each report.
        start: Step that the run goes on from; later lines of its log are written again.
    """

    def __init__(self, paths: RunPaths, callback: TrainingCallback, start: int):
        self._paths, self._listener = paths, callback
        self._log = RunLog(paths.log, start)

    def __call__(self, progress: Progress) -> None:
        """Take note of a report."""
        self._log.add(progress)
        self._listener.report(progress)

    def report(self, sizes: DraftSizes) -> TrainingReport:
        """What came out: the figures of the best evaluation."""
        entries = self._log.entries
        best = [entry for entry in entries if entry.get("is_best")][-1]
        decoded, held_out = dict(best["decoded"]), dict(best["held_out"])
        decoded["acceptance_by_depth"] = tuple(decoded["acceptance_by_depth"])
        for name in ("top1", "top5"):
            held_out[name] = tuple(held_out[name])
        return TrainingReport(
            output=self._paths.output,
            steps=entries[-1]["step"],
            best_step=best["step"],
            decoded=DecodedFigures(**decoded),
            held_out=Agreement(**held_out),
            sizes=sizes,
            peak_memory=mx.get_peak_memory() / 1e9,
        )

    def draw(self) -> None:
        """Draw the run's curves, where matplotlib is installed."""
        try:
            plot_curves(self._log.entries, self._paths.work / "curves.png")
        except DiskError:
            raise
        except RedrafterError as error:
            self._listener.note(str(error))  # matplotlib is an extra


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint file, 0 without one."""
    if not checkpoint.is_file():
        return 0
    try:
        loaded: Any = mx.load(str(checkpoint), return_metadata=True)
        return int(loaded[1]["step"])
    except (RuntimeError, KeyError, ValueError):
        return 0  # reported where it is loaded
