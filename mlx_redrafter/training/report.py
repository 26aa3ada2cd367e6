"""What a run says while it goes, who hears it, and what it leaves after about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from ..system.files import atomic_path
from .evaluation import Agreement, DecodedFigures
from .loop import Progress
from .output import DiskError, RunPaths, writing
from .shapes import DraftSizes


@dataclass(frozen=True)
class TrainingReport:
    """What came out.

    Attributes:
        output: Directory of the drafter.
        steps: Optimiser steps done.
        best_step: Step whose drafter it is.
        decoded: Its figures in real decoding.
        held_out: Its agreement along held-out rows.
        sizes: What drafting with it costs.
        peak_memory: In GB.
    """

    output: Path
    steps: int
    best_step: int
    decoded: DecodedFigures | None
    held_out: Agreement | None
    sizes: DraftSizes
    peak_memory: float

    def figures(self) -> dict[str, Any]:
        """Its measured figures, ready for JSON."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "decoded": None if self.decoded is None else self.decoded.to_dict(),
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "sizes": self.sizes.to_dict(),
            "peak_memory_gb": self.peak_memory,
        }


class RunLog:
    """One JSON object a line for each report.

    Args:
        path: The file; lines that are there are kept up to ``start``.
        start: Step that the run continues from; later lines are written again by it.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        self.entries = [entry for entry in _entries(path) if entry["step"] <= start]
        with writing(path), atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(e) + "\n" for e in self.entries), "utf-8")

    def add(self, progress: Progress) -> None:
        """Append a report."""
        entry = entry_of(progress)
        with writing(self.path), self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        self.entries.append(entry)


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of an interrupted run
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def entry_of(progress: Progress) -> dict[str, Any]:
    """A report as the log has it."""
    entry: dict[str, Any] = {
        "step": progress.step,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "positions_per_second": progress.positions_per_second,
        "batch_top1": list(progress.batch.top1),
    }
    if progress.held_out is not None:
        entry["held_out"] = asdict(progress.held_out)
    if progress.decoded is not None:
        entry["decoded"] = progress.decoded.to_dict()
        entry["is_best"] = progress.is_best
    return entry


def plot_curves(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, tokens per step, and acceptance and agreement by depth as a PNG.

    Args:
        entries: Of a ``RunLog``.
        path: The picture.

    Raises:
        RedrafterError: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise RedrafterError("Curves need matplotlib: pip install matplotlib.") from error
    figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
    loss, worth, depth = figure.subplots(1, 3)
    loss.plot([e["step"] for e in entries], [e["loss"] for e in entries])
    loss.set(xlabel="step", ylabel="nats", title="loss")
    measured = [e for e in entries if "decoded" in e]
    steps = [e["step"] for e in measured]
    worth.plot(steps, [e["decoded"]["tokens_per_step"] for e in measured], marker="o")
    worth.set(xlabel="step", title="tokens per step, held out")
    depths = max((len(e["decoded"]["acceptance_by_depth"]) for e in measured), default=0)
    for k in range(depths):
        values = [(e["decoded"]["acceptance_by_depth"][k : k + 1] or [None])[0] for e in measured]
        depth.plot(steps, values, marker="o", color=f"C{k}", label=f"depth {k + 1}")
    agreed = [e for e in entries if "held_out" in e]
    for k in range(max((len(e["held_out"]["top1"]) for e in agreed), default=0)):
        values = [e["held_out"]["top1"][k] for e in agreed]
        depth.plot([e["step"] for e in agreed], values, linestyle=":", color=f"C{k}")
    depth.set(xlabel="step", ylim=(0, 1), title="accepted (lines), top-1 agreement (dots)")
    if depths:
        depth.legend()
    with writing(path), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


class TrainingCallback:
    """Hears how a run goes; these methods do nothing.

    Each is called where everything is in order: what it raises ends the run, and after the
    checkpoint is written ``resume`` can go on.
    """

    def note(self, text: str) -> None:
        """A sentence worth knowing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A part of the work got on; the steps of the training are one of them."""

    def report(self, progress: Progress) -> None:
        """Loss and figures, every so many steps and at evaluations."""


class RunLogger:
    """Keeps the log of a run, and passes its reports on.

    Args:
        paths: Where the run keeps what.
        callback: Hears each report.
        start: Step that the run continues from; later lines of its log are written again.
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
    except (RuntimeError, KeyError, ValueError, OverflowError):
        return 0  # reported where it is loaded
