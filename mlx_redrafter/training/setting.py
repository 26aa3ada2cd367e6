"""What the stages of a training run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.model import SpeculativeModel
from ..target.target import Target
from .evaluation import TargetSizes
from .options import TrainingOptions
from .record import RunPaths, TrainingCallback


@dataclass(frozen=True)
class RunSetting:
    """A run: what was asked for, where it is kept, who hears of it, and the target.

    Attributes:
        options: What was asked for.
        paths: Where it is kept.
        callback: Who hears of it.
        model: The target, perhaps unpacked.
        tokenizer: mlx-lm's TokenizerWrapper.
        target_sha256: Of the target's weights as they are stored.
        target_sizes: Of these.
    """

    options: TrainingOptions
    paths: RunPaths
    callback: TrainingCallback
    model: SpeculativeModel
    tokenizer: Any
    target_sha256: str
    target_sizes: TargetSizes

    @property
    def target(self) -> Target:
        """What the drafter learns from."""
        return self.model.target
