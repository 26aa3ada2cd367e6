"""Measured costs in the user's cache directory, one file for each machine and model."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..cache.prompt_cache import PromptCache
from ..engine.model import SpeculativeModel, check_model
from ..errors import RedrafterError
from ..ranges import check_flags, function_of
from ..system.blas import busy_cores, is_loaded, kernels
from ..system.files import cache_directory, is_file, is_stream, write_json
from ..system.machine import processor_name
from .calibration import calibrate, calibrate_there
from .costs import CostModel

FORMAT = 11


def load_costs(
    model: SpeculativeModel,
    directory: Path | None = None,
    *,
    recalibrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CostModel:
    """The stored costs of this model on this machine, measured and stored where there are none.

    Args:
        model: A model whose drafter is a Drafter.
        directory: Where costs are kept; by default the user's cache directory, if there is one.
        recalibrate: Measure again.
        progress: See :func:`calibrate`.

    Raises:
        RedrafterError: If an argument is of another kind.
    """
    check_model(model)
    check_flags(recalibrate=recalibrate)
    function_of(progress, "progress", "a function of (measurements done, measurements to do)")
    if not recalibrate:
        stored = _agreed(model, _read(_path(model, directory)))
        if stored is not None:
            return stored
    costs = calibrate(model, progress)
    save_costs(model, costs, directory, outdated=True)
    return costs


def head_costs(
    model: SpeculativeModel,
    costs: CostModel | None = None,
    *,
    recalibrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CostModel:
    """The given costs, or those of :func:`load_costs`, of a model with a draft head.

    Raises:
        RedrafterError: If it has none, or an argument is of another kind.
    """
    check_model(model)
    check_flags(recalibrate=recalibrate)
    if model.head is None:
        raise RedrafterError(
            "A Planner plans the drafts of a head, and this model has none: load it with its "
            "drafter, or decode without a planner."
        )
    return costs or load_costs(model, recalibrate=recalibrate, progress=progress)


def measure_there(
    model: SpeculativeModel, costs: CostModel, cache: PromptCache, directory: Path | None = None
) -> CostModel:
    """Measure what a text's context adds, or what has changed, and store it.

    See :func:`calibrate_there`.
    """
    measured = calibrate_there(model, costs, cache)
    if measured != costs:
        save_costs(model, measured, directory, outdated=costs.knows(len(cache)))
    return measured


def save_costs(
    model: SpeculativeModel,
    costs: CostModel,
    directory: Path | None = None,
    *,
    outdated: bool = False,
) -> None:
    """Store costs, unless they are doubtful or there is nowhere to keep them.

    Args:
        model: Whose.
        costs: What was measured.
        directory: See :func:`load_costs`.
        outdated: Whether what is stored was measured again because it does not hold: it goes, if
            only doubtful costs take its place.
    """
    path = _path(model, directory)
    follows = model.ranks is not None and not model.ranks.leads
    if path is None or follows:
        return
    with suppress(OSError):  # a read-only home only means measuring again next time
        if is_stream(path) or (costs.doubtful and outdated):  # nobody reads from a pipe there
            path.unlink(missing_ok=True)
        if costs.doubtful:
            return
        write_json(path, {"format": FORMAT, "machine": machine(model), "costs": costs.to_dict()})


def _agreed(model: SpeculativeModel, stored: CostModel | None) -> CostModel | None:
    """Of several processes what rank 0 has stored, for all."""
    if model.ranks is None:
        return stored
    data = model.ranks.share(json.dumps(stored and stored.to_dict()).encode())
    value = json.loads(data)
    return None if value is None else CostModel.from_dict(value)


def _path(model: SpeculativeModel, directory: Path | None) -> Path | None:
    directory = directory or cache_directory()
    return directory / f"costs-{machine_key(model)}.json" if directory else None


def machine(model: SpeculativeModel) -> dict[str, Any]:
    """What the costs depend on: machine, device, mlx, model, precision."""
    parameters = tree_flatten(model.target.model.parameters())
    drafter = model.head
    head = tree_flatten(drafter.parameters()) if drafter else []
    return {
        "machine": f"{platform.system()} {platform.machine()} {processor_name()}",
        "cores": busy_cores(),
        "processes": model.ranks.size if model.ranks else 1,
        "device": str(mx.default_device()),
        "device_info": str(mx.device_info().get("device_name", "")),
        "mlx": version("mlx"),
        "openblas": kernels() or is_loaded(),
        "model": model.name,
        "target": _shapes(parameters),
        "drafter": _shapes(head),
        "lookback": drafter.config.lookback if drafter else 0,
    }


def machine_key(model: SpeculativeModel) -> str:
    """A short name for :func:`machine`."""
    text = json.dumps(machine(model), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shapes(parameters: Any) -> str:
    """A digest of names, shapes and dtypes: the same for all weights that cost the same."""
    text = ";".join(f"{name}{tuple(value.shape)}{value.dtype}" for name, value in parameters)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path | None) -> CostModel | None:
    if path is None or not is_file(path):
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
        return CostModel.from_dict(value["costs"]) if value.get("format") == FORMAT else None
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError,
    ):  # fmt: skip
        return None  # measured again
