"""The training loop: features in, drafter out, with everything that a long run needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.blas import share_cores
from ..system.device import fuses_drafts
from ..system.disk import DiskError, writing
from ..text.drafter_files import load_drafter, write_drafter
from .config import DistillationConfig
from .evaluation import Agreement, DecodedFigures, evaluate, ranks, summarize
from .features import Batch, BatchSource, CachedBatches, Features
from .teacher import Teacher
from .text_batches import TextBatches
from .text_loss import TextBatch
from .trainer import Trainer, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told.

    Attributes:
        step: Optimiser steps done.
        steps: Of how many.
        loss: Mean loss since the last report, nats.
        learning_rate: Of the last step.
        positions_per_second: Anchors trained on since the last report over the steps' own time.
        batch: Agreement on the last training batch.
        held_out: Agreement on held-out rows, if they were measured now.
        decoded: Figures of real decoding, if they were measured now.
        is_best: Whether the evaluation made now is the best so far.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    positions_per_second: float
    batch: Agreement
    held_out: Agreement | None
    decoded: DecodedFigures | None = None
    is_best: bool = False


@dataclass
class RunState:
    """What a run remembers beside weights and step.

    Attributes:
        evaluated: Step of the last evaluation.
        best_score: Tokens per step of the best evaluation, 0 before the first.
        best_chain: Its agreement's chain, which tells equals apart.
        best_step: Its step.
        stale: Evaluations since then.
        losses: Of the steps since the last report.
    """

    evaluated: int = 0
    best_score: float = 0.0
    best_chain: float = 0.0
    best_step: int = 0
    stale: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """When a run does what, in optimiser steps.

    Attributes:
        report_every: Between reports.
        evaluate_every: Between evaluations.
        save_every: Between checkpoints.
        patience: Evaluations without a better one after which the run ends; None for never.
    """

    report_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    patience: int | None = None


def train(
    target: Teacher,
    drafter: Drafter,
    features: Features | BatchSource,
    config: DistillationConfig,
    *,
    held_out: Features | TextBatches | None = None,
    measure: Callable[[Drafter], DecodedFigures] | None = None,
    checkpoint: Path | None = None,
    best: Path | None = None,
    resume: bool = False,
    report_every: int = 50,
    evaluate_every: int = 500,
    save_every: int = 500,
    patience: int | None = None,
    identity: dict[str, Any] | None = None,
    progress: Callable[[Progress], Any] | None = None,
    after_step: Callable[[int, int], Any] | None = None,
) -> Drafter:
    """Fit ``drafter`` to the target's distributions; the target is not changed.

    Args:
        target: For its embeddings.
        drafter: Trained in place, float32.
        features: Of the training rows, see ``teacher.compute_features``; or a source of batches
            such as ``teacher.StreamedBatches``.
        config: The run.
        held_out: Features of rows to measure agreement on, or batches of them.
        measure: Real decoding with the drafter as it stands; its tokens per step say which drafter
            is best. Without it the agreement's chain does.
        checkpoint: File (.safetensors) that is written every ``save_every`` steps, at the end, and
            when a callback ends the run.
        best: Directory in which the best drafter so far is kept, loadable; at the end the drafter
            becomes that one.
        resume: Go on from ``checkpoint`` where it exists, to the bit-identical result.
        report_every: Steps between reports.
        evaluate_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        patience: End after so many evaluations without a better one.
        identity: Recorded in the checkpoint; has to be the same when the run goes on.
        progress: Called with each report.
        after_step: Called with (steps done, steps in all) after each step. An exception that a
            callback raises ends the run; the checkpoint is written first.

    Returns:
        The same drafter.

    Raises:
        RedrafterError: If the loss or a gradient is no longer finite (the drafter is left as it was
            before that step), or the features or the checkpoint belong to another drafter or run.
    """
    loop = _Loop(
        target, drafter, _batch_source(drafter, features, config), config,
        Schedule(report_every, evaluate_every, save_every, patience), checkpoint, best,
        identity or {},
    )  # fmt: skip
    if resume and checkpoint is not None and checkpoint.exists():
        loop.load(checkpoint)
    loop.run(held_out, measure, progress, after_step)
    if best is not None and loop.state.best_step:
        drafter.update(load_drafter(best).parameters())
        mx.eval(drafter.parameters())
    return drafter


def _batch_source(
    drafter: Drafter, features: Features | BatchSource, config: DistillationConfig
) -> BatchSource:
    if not isinstance(features, Features):
        return features
    if features.head_size != drafter.config.head_size:
        raise RedrafterError(
            "The features were computed for another draft vocabulary: "
            "compute them for this drafter."
        )
    source = CachedBatches(features, config, drafter.config.lookback)
    if len(source.anchors) == 0:
        raise RedrafterError("The data has no answers to learn from: pass more of it.")
    return source


class _Loop:
    """A run under way."""

    def __init__(
        self,
        target: Teacher,
        drafter: Drafter,
        source: BatchSource,
        config: DistillationConfig,
        schedule: Schedule,
        checkpoint: Path | None,
        best: Path | None,
        identity: dict[str, Any],
    ):
        self.trainer = Trainer(target, drafter, config, fuse=fuses_drafts())
        self.state = RunState()
        self._source = source
        self._schedule = schedule
        self._checkpoint = checkpoint
        self._best = best
        self._identity = identity
        self._ahead: tuple[int, list[Batch | TextBatch]] = (-1, [])
        self._saved = -1
        self._steady = True  # where weights, state and what was reported belong together
        # Of the steps since the last report that this process made.
        self._seconds, self._anchors = 0.0, mx.array(0.0)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        trainer = self.trainer
        step, state = load_checkpoint(
            path, trainer.drafter, trainer.optimizer, trainer.config, identity=self._identity
        )
        try:
            self.state = RunState(**state)
        except TypeError:
            raise RedrafterError(
                f"{path} is not a training checkpoint: remove it to start anew."
            ) from None
        trainer.step = self._saved = step

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self._checkpoint is None:
            return
        trainer = self.trainer
        kept = f"the last good checkpoint is of step {self._saved}" if self._saved > 0 else ""
        with writing(self._checkpoint, kept):
            save_checkpoint(
                self._checkpoint, trainer.drafter, trainer.optimizer, trainer.step, trainer.config,
                identity=self._identity, state=asdict(self.state),
            )  # fmt: skip
        self._saved = trainer.step

    def run(
        self,
        held_out: Features | TextBatches | None,
        measure: Callable[[Drafter], DecodedFigures] | None,
        progress: Callable[[Progress], Any] | None,
        after_step: Callable[[int, int], Any] | None,
    ) -> None:
        """Steps, reports, evaluations and checkpoints until the end or an exception."""
        steps = self.trainer.config.steps
        try:
            while True:
                self._evaluate(held_out, measure, progress)
                step = self.trainer.step
                if step == steps or self._exhausted():
                    break
                if step and step % self._schedule.save_every == 0 and step != self._saved:
                    self.save()
                batch = self._step()
                step = self.trainer.step
                if step % self._schedule.report_every == 0 and not self._due(step):
                    self._report(batch, progress)
                if after_step is not None:
                    after_step(step, steps)
        except DiskError:
            raise
        except BaseException:
            if self._steady:
                self.save()
            raise
        self.save()

    def _due(self, step: int) -> bool:
        every = self._schedule.evaluate_every
        return step > 0 and (step % every == 0 or step == self.trainer.config.steps)

    def _exhausted(self) -> bool:
        patience = self._schedule.patience
        return patience is not None and self.state.stale >= patience

    def _batches(self, step: int) -> list[Batch | TextBatch]:
        accumulate = self.trainer.config.accumulate
        return [self._source.batch(step * accumulate + i) for i in range(accumulate)]

    def _make_ahead(self, step: int) -> None:
        """Begin to make a step's only batch, so that the device is never without work."""
        if self.trainer.config.accumulate == 1 and step < self.trainer.config.steps:
            batches = self._batches(step)
            mx.async_eval(batches)
            self._ahead = (step, batches)

    def _step(self) -> Batch | TextBatch:
        began = time.perf_counter()
        # Forwards over one token, of whatever text, may have left a core to others; and another
        # number of threads sums in another order, so a run would depend on what was before a step.
        share_cores(leave_one=False)
        step = self.trainer.step
        batches = self._ahead[1] if self._ahead[0] == step else self._batches(step)
        self._steady = False
        begun = self.trainer.begin_step(batches)
        for batch in batches:
            self._anchors = self._anchors + batch.weights[:, 0].sum()
        self._make_ahead(step + 1)
        loss = self.trainer.end_step(begun)
        if not math.isnan(loss):
            self.state.losses.append(loss)
        self._steady = True
        self._seconds += time.perf_counter() - began
        if math.isnan(loss):
            raise RedrafterError(self._diverged())
        return batches[-1]

    def _diverged(self) -> str:
        step = self.trainer.step
        told = f"Training diverged at step {step + 1}: the loss is not a finite number."
        kept = [f"the last good state, of step {step}, is {self._checkpoint}"]
        if self._best is not None and self.state.best_step:
            kept.append(f"the best drafter so far, of step {self.state.best_step}, is {self._best}")
        if self._checkpoint is None:
            return f"{told} Lower the learning rate."
        return f"{told} Lower the learning rate and start anew; {', and '.join(kept)}."

    def _evaluate(
        self,
        held_out: Features | TextBatches | None,
        measure: Callable[[Drafter], DecodedFigures] | None,
        progress: Callable[[Progress], Any] | None,
    ) -> None:
        """Evaluate where it is due and was not done, report it, and keep the best."""
        trainer, state, step = self.trainer, self.state, self.trainer.step
        if not self._due(step) or state.evaluated == step:
            return
        share_cores(leave_one=False)
        unroll = trainer.config.unroll
        agreement = None
        if held_out is not None:
            chunk = min(512, trainer.config.positions_per_step)  # no larger arrays than a step's
            agreement = evaluate(
                trainer.target, trainer.drafter, held_out, unroll=unroll, chunk=chunk
            )
        decoded = None if measure is None else measure(trainer.drafter)
        chain = agreement.chain if agreement else 0.0
        score = decoded.tokens_per_step if decoded else chain
        is_best = (score, chain) > (state.best_score, state.best_chain)
        if is_best and self._best is not None:
            with writing(self._best):
                write_drafter(self._best, trainer.drafter)
        self._steady = False  # until it is reported, it is not done
        state.evaluated = step
        if is_best:
            state.best_score, state.best_chain = score, chain
            state.best_step, state.stale = step, 0
        elif score:
            state.stale += 1
        batch = self._source.batch(step * trainer.config.accumulate - 1)
        self._report(batch, progress, agreement, decoded, is_best)

    def _report(
        self,
        batch: Batch | TextBatch,
        progress: Callable[[Progress], Any] | None,
        held_out: Agreement | None = None,
        decoded: DecodedFigures | None = None,
        is_best: bool = False,
    ) -> None:
        self._steady = False
        losses, self.state.losses = self.state.losses, []
        seconds, anchors = max(self._seconds, 1e-9), float(np.array(self._anchors))
        self._seconds, self._anchors = 0.0, mx.array(0.0)
        if progress is None:
            self._steady = True
            return
        trainer, config = self.trainer, self.trainer.config
        rank = np.array(ranks(trainer.drafter, batch, trainer.embed(batch)))
        report = Progress(
            step=trainer.step,
            steps=config.steps,
            loss=sum(losses) / max(len(losses), 1),
            learning_rate=float(np.array(trainer.optimizer.learning_rate)),
            positions_per_second=anchors / seconds,
            batch=summarize(rank, np.array(batch.weights) > 0),
            held_out=held_out,
            decoded=decoded,
            is_best=is_best,
        )
        self._steady = True
        progress(report)
