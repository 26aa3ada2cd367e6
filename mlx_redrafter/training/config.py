"""What a training run is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RedrafterError


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of a training run; the run is a pure function of them, the data and the weights.

    Attributes:
        unroll: Draft steps fitted at each anchor; the beam length that the drafter is made for.
        depth_decay: Weight of draft step k is ``depth_decay ** (k - 1)``.
        temperature: Of the teacher's softmax.
        hard_weight: Share of the loss that fits the text's own next token instead of the teacher's
            distribution: 0 is distillation alone, 1 the paper's baseline without it.
        top_k: Teacher probabilities kept at each position; the rest is fitted as one sum.
        steps: Optimiser steps.
        positions_per_step: Anchors in one forward and backward pass. The largest array has
            ``positions_per_step * unroll * head_size`` float32 values.
        accumulate: Passes whose gradients are averaged into one optimiser step.
        learning_rate: Peak of the schedule: linear warmup, then cosine down to a hundredth.
        warmup: Share of the steps spent warming up.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        batch_tokens: Padded tokens in one forward pass of the target.
        batch_size: Rows whose anchors are sampled for one step when features are not cached.
        seed: Of the order of the data.
    """

    unroll: int = 5
    depth_decay: float = 0.9
    temperature: float = 1.0
    hard_weight: float = 0.0
    top_k: int = 32
    steps: int = 2000
    positions_per_step: int = 512
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.03
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    batch_tokens: int = 4096
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "unroll",
            "top_k",
            "steps",
            "positions_per_step",
            "accumulate",
            "batch_tokens",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise RedrafterError(f"{name} is {getattr(self, name)}: at least 1 is needed.")
        for name in ("temperature", "learning_rate", "max_grad_norm", "depth_decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RedrafterError(
                    f"{name} is {getattr(self, name)}: a number above 0 is needed."
                )
        for name in ("hard_weight", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise RedrafterError(
                    f"{name} is {getattr(self, name)}: a number from 0 to 1 is needed."
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of all settings."""
        return {**asdict(self), "betas": list(self.betas)}
