"""Everything a run needs to go on, in one file: weights, optimiser state and the step number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.files import atomic_path
from .config import DistillationConfig


def _settings(
    drafter: Drafter, config: DistillationConfig, identity: dict[str, Any]
) -> dict[str, Any]:
    parts = {
        "drafter": drafter.config.to_dict(),
        "distillation": config.to_dict(),
        "identity": identity,
    }
    return json.loads(json.dumps(parts))


def save_checkpoint(
    path: Path,
    drafter: Drafter,
    optimizer: optim.Optimizer,
    step: int,
    config: DistillationConfig,
    *,
    identity: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
) -> None:
    """Write the state after ``step`` optimiser steps to ``path`` (.safetensors), atomically.

    The data position is the step number, since batches are a pure function of it.

    Args:
        path: Where to.
        drafter: Its weights.
        optimizer: Its moments.
        step: Steps done.
        config: The run.
        identity: What else has to be the same when the run goes on, such as a hash of the data.
        state: What else the run has to remember; JSON-able.
    """
    arrays = dict(tree_flatten(drafter.parameters(), prefix=".drafter"))
    arrays |= dict(tree_flatten(optimizer.state, prefix=".optimizer"))
    settings = _settings(drafter, config, identity or {})
    metadata = {
        "step": str(step),
        "settings": json.dumps(settings),
        "state": json.dumps(state or {}),
    }
    with atomic_path(path) as temporary:
        mx.save_safetensors(str(temporary), arrays, metadata)


def load_checkpoint(
    path: Path,
    drafter: Drafter,
    optimizer: optim.Optimizer,
    config: DistillationConfig,
    *,
    identity: dict[str, Any] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Put a checkpoint's weights into ``drafter`` and ``optimizer``; return its step and state.

    Raises:
        RedrafterError: If the file cannot be read or was made with other settings.
    """
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        settings, step = json.loads(metadata["settings"]), int(metadata["step"])
        state = json.loads(metadata["state"])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise RedrafterError(
            f"{path} is not a training checkpoint: remove it to start anew."
        ) from error
    wanted = _settings(drafter, config, identity or {})
    if settings != wanted:
        changed = sorted(
            key
            for part in wanted
            for key in wanted[part] | settings.get(part, {})
            if wanted[part].get(key) != settings.get(part, {}).get(key)
        )
        raise RedrafterError(
            f"{path} was made with other settings ({', '.join(changed)}): "
            "use the same ones, or remove it to start anew."
        )
    tree: Any = tree_unflatten(list(arrays.items()))
    drafter.update(tree["drafter"])
    optimizer.state = tree["optimizer"]
    mx.eval(drafter.parameters(), optimizer.state)
    return step, state
