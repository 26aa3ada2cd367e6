"""What a run leaves and tells: its directory, its log and curves, its report, who hears of it."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from .. import __version__
from ..drafting.config import MODEL_TYPE
from ..drafting.drafter import Drafter
from ..drafting.recorded import RecordedDrafts
from ..errors import RedrafterError
from ..system.disk import DiskError, changes, writing
from ..system.files import atomic_path, write_json
from ..text.drafter_files import save_recorded, write_drafter
from ..text.places import CONFIG_FILE, WEIGHTS_FILE
from .evaluation import Agreement, DecodedFigures, DraftSizes
from .loop import Progress
from .options import TrainingOptions

Figures = TypeVar("Figures", DecodedFigures, Agreement)

CARD_FILE = "training.json"  # beside a drafter: what it was made of

# What may differ when a run goes on; what these name is compared by its contents.
_FREE = {
    "resume", "overwrite", "model", "output", "cache_features", "adapter_path", "revision",
    "trust_remote_code", "save_every", "report_every",
}  # fmt: skip


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what; everything but the drafter and its card is under ``work``."""

    output: Path

    @property
    def work(self) -> Path:
        """Directory of the run's own files."""
        return self.output / "training"

    @property
    def settings(self) -> Path:
        """The settings of an unfinished run; removed when it is finished."""
        return self.work / "run.json"

    @property
    def checkpoint(self) -> Path:
        """The state to continue from."""
        return self.work / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """The best drafter so far, loadable."""
        return self.work / "best"

    @property
    def log(self) -> Path:
        """Reports, one JSON object a line."""
        return self.work / "log.jsonl"


def kept_settings(options: TrainingOptions) -> dict[str, Any]:
    """The settings that have to be the same when a run goes on."""
    return {k: v for k, v in options.to_dict().items() if k not in _FREE}


def check_run_dir(paths: RunPaths, options: TrainingOptions) -> None:
    """See that nothing is lost that was not meant to be, and that a run goes on as it began."""
    _spare_models(paths.output)
    unfinished = paths.settings.is_file()
    finished = (paths.output / WEIGHTS_FILE).is_file()
    if options.overwrite:
        return
    if unfinished and not options.resume:
        raise RedrafterError(
            f"{paths.output} has an unfinished run: pass --resume to go on with it, or --overwrite "
            "to start anew."
        )
    if unfinished:
        changed = changes(paths.settings, kept_settings(options))
        if changed:
            raise RedrafterError(
                f"The run in {paths.output} was begun with other settings ({', '.join(changed)}): "
                "go on with the same ones, or pass --overwrite to start anew."
            )
    elif finished:
        raise RedrafterError(
            f"{paths.output} holds a finished drafter: pass --overwrite to replace it, or another "
            "--output."
        )


def begin(paths: RunPaths, options: TrainingOptions) -> None:
    """Note that a run is under way; nothing of an overwritten one is left but what serves again.

    Raises:
        RedrafterError: If it cannot be written.
    """
    if options.overwrite:
        for path in (paths.settings, paths.checkpoint, paths.log):
            path.unlink(missing_ok=True)
        shutil.rmtree(paths.best, ignore_errors=True)
    with writing(paths.settings):
        write_json(paths.settings, kept_settings(options))


def forget_unbegun(paths: RunPaths) -> None:
    """After an error: a run without a checkpoint leaves nothing to go on with but its answers."""
    if not paths.checkpoint.is_file():
        paths.settings.unlink(missing_ok=True)


def _spare_models(output: Path) -> None:
    """Refuse the directory of a model that is no drafter, such as the target's own."""
    config = output / CONFIG_FILE
    if not config.is_file():
        return
    try:
        kind = json.loads(config.read_text("utf-8")).get("model_type", MODEL_TYPE)
    except (OSError, ValueError, AttributeError, RecursionError):
        kind = "unknown"
    if kind != MODEL_TYPE:
        raise RedrafterError(
            f"{output} holds a model that is no drafter ({kind}), and its configuration would be "
            "lost: pass another --output."
        )


def finish(
    paths: RunPaths, drafter: Drafter, card: dict[str, Any], recorded: RecordedDrafts | None
) -> None:
    """Write the drafter and its card, training.json; then the run is no longer unfinished.

    Args:
        paths: Of the run.
        drafter: As it is to be saved.
        card: What it was made of; versions are added.
        recorded: How its drafts went.

    Raises:
        RedrafterError: If it cannot be written; the run can then be gone on with.
    """
    versions = {
        "mlx_redrafter": __version__,
        **{name: version(name) for name in ("mlx", "mlx-lm")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    with writing(paths.output, f"the trained drafter is in {paths.best}"):
        write_drafter(paths.output, drafter)
        if recorded is not None:
            save_recorded(paths.output, recorded)
        write_json(paths.output / CARD_FILE, {**card, "versions": versions})
    for path in (paths.settings, paths.checkpoint):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.best, ignore_errors=True)


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
        """What came out: the figures of the best evaluation, as far as the log still has them."""
        steps, best_step = step_of(self._paths.checkpoint), best_step_of(self._paths.checkpoint)
        found = [e for e in self._log.entries if e.get("is_best") and e["step"] == best_step]
        if not found:  # removed, or lost in a power cut; the checkpoint is what counts
            self._listener.note(
                f"{self._paths.log} lacks the evaluation at step {best_step}, so its figures are "
                "left out."
            )
        return TrainingReport(
            output=self._paths.output,
            steps=steps,
            best_step=best_step,
            decoded=_figures(DecodedFigures, found[-1]["decoded"]) if found else None,
            held_out=_figures(Agreement, found[-1]["held_out"]) if found else None,
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


def _figures(kind: type[Figures], entry: dict[str, Any]) -> Figures:
    """Figures as they were before the log turned their tuples into lists."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return kind(**values)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint file, 0 without one."""
    try:
        return int(_metadata(checkpoint)["step"])
    except (KeyError, ValueError, OverflowError):
        return 0  # reported where it is loaded


def best_step_of(checkpoint: Path) -> int:
    """The step of the best evaluation before a checkpoint file was written."""
    return int(json.loads(_metadata(checkpoint)["state"])["best_step"])


def _metadata(checkpoint: Path) -> dict[str, str]:
    if not checkpoint.is_file():
        return {}
    try:
        loaded: Any = mx.load(str(checkpoint), return_metadata=True)
    except RuntimeError:
        return {}  # reported where it is loaded
    metadata: dict[str, str] = loaded[1]
    return metadata
