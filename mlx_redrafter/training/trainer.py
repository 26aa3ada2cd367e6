"""One optimiser step, the state that it changes, and that state in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.files import atomic_path
from .config import DistillationConfig
from .features import Batch
from .held_out import redrawn
from .loss import distillation_loss
from .teacher import Teacher
from .text_loss import TextBatch

MUON_RMS = 0.2  # root mean square of AdamW's updates at a learning rate of 1


def learning_rate_schedule(config: DistillationConfig) -> Callable[[mx.array], mx.array]:
    """Linear warmup to the peak, then cosine down to a hundredth just behind the last step."""
    warmup = max(1, round(config.warmup * config.steps))
    rest = max(1, config.steps - warmup)
    peak = config.learning_rate

    def schedule(step: mx.array) -> mx.array:
        step = step.astype(mx.float32)  # the optimiser counts in unsigned numbers
        rising = (step + 1) / warmup
        done = mx.clip((step - warmup) / rest, 0, 1)
        falling = 0.01 + 0.99 * 0.5 * (1 + mx.cos(math.pi * done))
        return (peak * mx.minimum(rising, falling)).astype(mx.float32)

    return schedule


def _optimizer(drafter: Drafter, config: DistillationConfig) -> optim.Optimizer:
    """AdamW; in a head with a memory Muon for all matrices but the output rows.

    Muon makes updates of spectral norm 1; scaled like AdamW's (Liu et al., arXiv 2502.16982) both
    go by one learning rate.
    """
    schedule = learning_rate_schedule(config)
    adam = optim.AdamW(
        learning_rate=schedule,
        betas=list(config.betas),
        weight_decay=config.weight_decay,
        bias_correction=True,
    )
    if not drafter.remembers:
        return adam
    scale = MUON_RMS * (drafter.config.state_size or 1) ** 0.5
    muon = optim.Muon(lambda step: scale * schedule(step), weight_decay=0.0)

    def by_adam(path: str, value: mx.array) -> bool:
        return value.ndim < 2 or path.startswith("lm_head")

    return optim.MultiOptimizer([adam, muon], [by_adam])


class Trainer:
    """One run's state: the drafter, its optimiser and the steps done."""

    def __init__(
        self, target: Teacher, drafter: Drafter, config: DistillationConfig, fuse: bool = False
    ):
        self.target, self.drafter, self.config = target, drafter, config
        self.step = 0
        self.optimizer = _optimizer(drafter, config)
        self.optimizer.init(drafter.trainable_parameters())
        self._gradients = value_and_grad(
            drafter, lambda batch, embeddings: distillation_loss(drafter, batch, embeddings, config)
        )
        if fuse:
            state = drafter.state  # an output too: value_and_grad writes the weights back
            self._gradients = mx.compile(self._gradients, inputs=state, outputs=state)

    def embed(self, batch: Batch | TextBatch) -> mx.array:
        """The target's embeddings of what the drafter reads, (N, lookback + U, H) float32."""
        return self.target.embed(batch.fed).astype(mx.float32)

    def begin_step(self, batches: Sequence[Batch | TextBatch]) -> mx.array:
        """Begin an optimiser step over ``batches``; their mean loss, which is not waited for.

        Where the loss or the gradient is not finite the loss is NaN and nothing is changed.
        """
        total, gradients = mx.array(0.0), None
        for batch in batches:
            loss, new = self._gradients(batch, self.embed(batch))
            total = total + loss / len(batches)
            new = tree_map(lambda g: g / len(batches), new) if len(batches) > 1 else new
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            if len(batches) > 1:
                # Or the arrays of all passes would be there at once; the loss asks for a part of a
                # batch, and the rest would hold the logits that it is computed from.
                mx.eval(total, gradients, batch)
        gradients, norm = optim.clip_grad_norm(gradients, self.config.max_grad_norm)
        finite = mx.isfinite(total + norm)
        before = self._state
        self.optimizer.update(self.drafter, gradients)
        kept = tree_map(lambda new, old: mx.where(finite, new, old), self._state, before)
        self.drafter.update(kept["drafter"])
        self.optimizer.state = kept["optimizer"]
        loss = mx.where(finite, total, mx.array(math.nan))
        mx.async_eval(loss, kept)
        return loss

    @property
    def _state(self) -> dict[str, Any]:
        """All that a step changes, in dictionaries and lists of its own."""
        state = {"drafter": self.drafter.trainable_parameters(), "optimizer": self.optimizer.state}
        return tree_map(lambda array: array, state)

    def end_step(self, loss: mx.array) -> float:
        """Wait for a step that was begun, and count it if anything was changed; the loss."""
        value = float(np.array(loss))
        self.step += not math.isnan(value)
        return value

    def update(self, batches: Sequence[Batch | TextBatch]) -> float:
        """One optimiser step over ``batches``; returns their mean loss.

        Where the loss or the gradient is not finite nothing is changed and the loss is NaN.
        """
        return self.end_step(self.begin_step(batches))


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
    arrays, step, state = _opened(path, drafter, config, identity or {})
    optimizer.init(drafter.trainable_parameters())
    _check_arrays(path, arrays, drafter, optimizer)
    tree: Any = tree_unflatten(list(arrays.items()))
    drafter.update(tree["drafter"])
    optimizer.state = tree["optimizer"]
    mx.eval(drafter.parameters(), optimizer.state)
    return step, state


def check_checkpoint(
    path: Path,
    drafter: Drafter,
    config: DistillationConfig,
    *,
    identity: dict[str, Any] | None = None,
) -> None:
    """See that a run can go on from a checkpoint, before the work that comes before its steps.

    Raises:
        RedrafterError: As :func:`load_checkpoint`.
    """
    _opened(path, drafter, config, identity or {})


def _opened(
    path: Path, drafter: Drafter, config: DistillationConfig, identity: dict[str, Any]
) -> tuple[dict[str, mx.array], int, dict[str, Any]]:
    """(arrays, not read yet, step, state) of a checkpoint that was made with these settings."""
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        settings, step = json.loads(metadata["settings"]), int(metadata["step"])
        state = json.loads(metadata["state"])
        if not isinstance(settings, dict) or not isinstance(state, dict):
            raise ValueError("no settings")
    except (OSError, RuntimeError, KeyError, ValueError, RecursionError) as error:
        raise RedrafterError(
            f"{path} is not a training checkpoint: remove it to start anew."
        ) from error
    wanted = _settings(drafter, config, identity)
    if settings != wanted:
        changed = {
            key
            for part in wanted
            for found in [settings[part] if isinstance(settings.get(part), dict) else {}]
            for key in wanted[part] | found
            if wanted[part].get(key) != found.get(key)
        }
        raise RedrafterError(
            f"{path} was made with another {', another '.join(sorted(changed))}"
            f"{redrawn(changed)}: use the same, or start anew with --overwrite (or without that "
            "file)."
        )
    return arrays, step, state


def _check_arrays(
    path: Path, arrays: dict[str, mx.array], drafter: Drafter, optimizer: optim.Optimizer
) -> None:
    expected = dict(tree_flatten(drafter.parameters(), prefix=".drafter"))
    expected |= dict(tree_flatten(optimizer.state, prefix=".optimizer"))
    for name in sorted(expected.keys() | arrays.keys()):
        found = arrays.get(name)
        if found is None or name not in expected or found.shape != expected[name].shape:
            raise RedrafterError(
                f"{path} is damaged: its tensor {name} is not this drafter's; remove the file to "
                "start anew."
            )
