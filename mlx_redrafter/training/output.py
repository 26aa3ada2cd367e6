"""What a run leaves where, and errors of writing it, told in one sentence."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .. import __version__
from ..drafting.drafter import MODEL_TYPE, Drafter
from ..errors import RedrafterError
from ..system.files import write_json
from ..text.loading import CONFIG_FILE, WEIGHTS_FILE, save_drafter
from .options import TrainingOptions

CARD_FILE = "training.json"  # beside a drafter: what it was made of

# What may differ when a run goes on; what these name is compared by its contents.
_FREE = {
    "resume", "overwrite", "model", "output", "cache_features", "adapter_path", "revision",
    "trust_remote_code",
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


def finish(paths: RunPaths, drafter: Drafter, card: dict[str, Any]) -> None:
    """Write the drafter and its card, training.json; then the run is no longer unfinished.

    Args:
        paths: Of the run.
        drafter: As it is to be saved.
        card: What it was made of; versions are added.

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
        save_drafter(paths.output, drafter)
        write_json(paths.output / CARD_FILE, {**card, "versions": versions})
    for path in (paths.settings, paths.checkpoint):
        path.unlink(missing_ok=True)
    shutil.rmtree(paths.best, ignore_errors=True)


class DiskError(RedrafterError):
    """Something could not be written; what was written before is whole."""


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn an error of writing into one sentence.

    Args:
        path: What is written.
        kept: What there is to continue from, for the sentence.

    Raises:
        DiskError: If the block fails to write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        then = f"; {kept}" if kept else ""
        raise DiskError(
            f"{path} could not be written ({reason}): make room on that disk, or choose another "
            f"directory{then}."
        ) from error


def changes(path: Path, identity: dict[str, Any]) -> list[str]:
    """Names of the entries in which a JSON file differs from ``identity``.

    The file's own name where it is not there or cannot be read.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        return [name for name, value in identity.items() if found.get(name) != value]
    except (OSError, ValueError, AttributeError, RecursionError):
        return [path.name]
