"""What the stages of a training run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.model import SpeculativeModel
from ..target.target import Target
from .options import TrainingOptions
from .record import RunPaths, TrainingCallback


@dataclass(frozen=True)
class RunSetting:
    """A run: what was asked for, where it is kept, who hears of it, and the target."""

    options: TrainingOptions
    paths: RunPaths
    callback: TrainingCallback
    model: SpeculativeModel
    tokenizer: Any
    target_sha256: str

    @property
    def target(self) -> Target:
        """What the drafter learns from."""
        return self.model.target
