"""The training loop: features in, drafter out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_map

from ..drafter import Drafter
from ..errors import RedrafterError
from .checkpoint import load_checkpoint, save_checkpoint
from .config import DistillationConfig
from .evaluation import Agreement, evaluate, ranks, summarize
from .features import Batch, BatchSource, CachedBatches, Features
from .loss import distillation_loss
from .teacher import Teacher


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told.

    Attributes:
        step: Optimiser steps done.
        steps: Of how many.
        loss: Mean loss since the last report, nats.
        learning_rate: Of the last step.
        positions_per_second: Anchors trained on since the last report, by wall clock.
        batch: Agreement on the last training batch.
        held_out: Agreement on held-out rows, if they were measured now.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    positions_per_second: float
    batch: Agreement
    held_out: Agreement | None


def learning_rate_schedule(config: DistillationConfig) -> Callable[[mx.array], mx.array]:
    """Linear warmup to the peak, then cosine down to a hundredth of it at the last step."""
    warmup = max(1, round(config.warmup * config.steps))
    rest = max(1, config.steps - warmup)
    peak = config.learning_rate

    def schedule(step: mx.array) -> mx.array:
        rising = (step + 1) / warmup
        done = mx.clip((step - warmup) / rest, 0, 1)
        falling = 0.01 + 0.99 * 0.5 * (1 + mx.cos(math.pi * done))
        return (peak * mx.minimum(rising, falling)).astype(mx.float32)

    return schedule


class Trainer:
    """One run's state: the drafter, its optimiser and the steps done."""

    def __init__(
        self, target: Teacher, drafter: Drafter, config: DistillationConfig, fuse: bool = False
    ):
        self.target, self.drafter, self.config = target, drafter, config
        self.step = 0
        self.optimizer = optim.AdamW(
            learning_rate=learning_rate_schedule(config),
            betas=list(config.betas),
            weight_decay=config.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(drafter.trainable_parameters())
        self._gradients = value_and_grad(
            drafter, lambda batch, embeddings: distillation_loss(drafter, batch, embeddings, config)
        )
        if fuse:
            state = drafter.state  # an output too: value_and_grad writes the weights back
            self._gradients = mx.compile(self._gradients, inputs=state, outputs=state)

    def embed(self, batch: Batch) -> mx.array:
        """The target's embeddings of the batch's tokens, (N, U, H) float32."""
        return self.target.embed(batch.tokens).astype(mx.float32)

    def update(self, batches: list[Batch]) -> float:
        """One optimiser step over ``batches``; returns their mean loss.

        Where the loss or the gradient is not finite nothing is changed and the loss is NaN.
        """
        total, gradients = mx.array(0.0), None
        for batch in batches:
            loss, new = self._gradients(batch, self.embed(batch))
            total = total + loss / len(batches)
            new = tree_map(lambda g: g / len(batches), new) if len(batches) > 1 else new
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            mx.eval(total, gradients)
        gradients, norm = optim.clip_grad_norm(gradients, self.config.max_grad_norm)
        mean = float(np.array(total))
        if not math.isfinite(mean + float(np.array(norm))):
            return math.nan
        self.optimizer.update(self.drafter, gradients)
        mx.eval(self.drafter.parameters(), self.optimizer.state)
        self.step += 1
        return mean


def _batch_source(
    drafter: Drafter, features: Features | BatchSource, config: DistillationConfig
) -> BatchSource:
    if not isinstance(features, Features):
        return features
    if features.columns.size and int(features.columns.max()) >= drafter.config.head_size:
        raise RedrafterError(
            "The features were computed for another draft vocabulary: "
            "compute them for this drafter."
        )
    source = CachedBatches(features, config)
    if len(source.anchors) == 0:
        raise RedrafterError("The data has no answers to learn from: pass more of it.")
    return source


def train(
    target: Teacher,
    drafter: Drafter,
    features: Features | BatchSource,
    config: DistillationConfig,
    *,
    held_out: Features | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    report_every: int = 50,
    evaluate_every: int = 500,
    save_every: int = 500,
    progress: Callable[[Progress], Any] | None = None,
) -> Drafter:
    """Fit ``drafter`` to the target's distributions; the target is not changed.

    Args:
        target: For its embeddings.
        drafter: Trained in place, float32.
        features: Of the training rows, see ``teacher.compute_features``; or a source of batches
            such as ``teacher.StreamedBatches``.
        config: The run.
        held_out: Features of rows to measure agreement on.
        checkpoint: File (.safetensors) that is written every ``save_every`` steps and at the end.
        resume: Go on from ``checkpoint`` where it exists, to the bit-identical result.
        report_every: Steps between reports.
        evaluate_every: Steps between evaluations on ``held_out``.
        save_every: Steps between checkpoints.
        progress: Called with each report; an exception that it raises ends the run.

    Returns:
        The same drafter.

    Raises:
        RedrafterError: If the loss or a gradient is no longer finite (the drafter is left as it was
            before that step), or the features or the checkpoint belong to another drafter or run.
    """
    source = _batch_source(drafter, features, config)
    # Fused kernels need a compiler on a CPU, which users may lack; a GPU brings its own.
    trainer = Trainer(target, drafter, config, fuse=mx.default_device().type == mx.gpu)
    if resume and checkpoint is not None and checkpoint.exists():
        trainer.step = load_checkpoint(checkpoint, drafter, trainer.optimizer, config)
    losses: list[float] = []
    began = time.perf_counter()
    while trainer.step < config.steps:
        first = trainer.step * config.accumulate
        batches = [source.batch(first + i) for i in range(config.accumulate)]
        losses.append(trainer.update(batches))
        if math.isnan(losses[-1]):
            raise RedrafterError(_diverged(trainer.step + 1, checkpoint))
        step, last = trainer.step, trainer.step == config.steps
        if checkpoint is not None and (last or step % save_every == 0):
            save_checkpoint(checkpoint, drafter, trainer.optimizer, step, config)
        if progress is not None and (last or step % report_every == 0):
            measured = None
            if held_out is not None and (last or step % evaluate_every == 0):
                measured = evaluate(target, drafter, held_out, unroll=config.unroll)
            progress(_report(trainer, batches[-1], losses, began, measured))
            losses, began = [], time.perf_counter()
    return drafter


def _diverged(step: int, checkpoint: Path | None) -> str:
    told = f"Training diverged at step {step}: the loss is not a finite number."
    if checkpoint is not None and checkpoint.exists():
        return f"{told} The last good state is {checkpoint}: lower the learning rate."
    return f"{told} Lower the learning rate."


def _report(
    trainer: Trainer,
    batch: Batch,
    losses: list[float],
    began: float,
    measured: Agreement | None,
) -> Progress:
    config = trainer.config
    seconds = max(time.perf_counter() - began, 1e-9)
    rank = np.array(ranks(trainer.drafter, batch, trainer.embed(batch)))
    positions = len(losses) * config.accumulate * config.positions_per_step
    return Progress(
        step=trainer.step,
        steps=config.steps,
        loss=sum(losses) / max(len(losses), 1),
        learning_rate=float(np.array(trainer.optimizer.learning_rate)),
        positions_per_second=positions / seconds,
        batch=summarize(rank, np.array(batch.weights) > 0),
        held_out=measured,
    )
