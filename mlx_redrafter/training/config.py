"""What the steps of a training run are made of, and which numbers its settings may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..ranges import OptionRange

_RANGES = {
    OptionRange("", int, 1): (
        "self_questions", "held_out", "max_records", "max_seq_length", "regenerate_max_tokens",
        "regenerate_batch_size", "regenerate_prompt_tokens", "exit_dim", "draft_vocab_size",
        "unroll", "top_k", "steps", "positions_per_step", "accumulate", "batch_size",
        "batch_tokens", "eval_every", "eval_prompts", "eval_max_tokens", "state_size", "mlp_size",
        "memory_heads", "memory_window", "beam_width", "beam_length", "patience", "save_every",
        "report_every",
    ),
    OptionRange("", int, 0): ("num_draft_layers", "seed", "lookback"),
    OptionRange("", int, 4): ("memory_head_dim",),
    OptionRange("", float, 0, above=True): (
        "epochs", "learning_rate", "temperature", "depth_decay", "max_grad_norm",
    ),
    OptionRange("", float, 0): ("weight_decay", "regenerate_temperature", "eval_temperature"),
    OptionRange("", float, 0, 1): ("hard_weight", "warmup"),
}  # fmt: skip


def check_ranges(settings: Any) -> None:
    """See that all numbers of some settings are such as they may be.

    Args:
        settings: Any object with attributes of these names; None and missing ones are left alone.

    Raises:
        RedrafterError: Naming the first that is not, and what it has to be.
    """
    for limits, names in _RANGES.items():
        for name in names:
            limits.checked(getattr(settings, name, None), name)


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
        check_ranges(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of all settings."""
        return {**asdict(self), "betas": list(self.betas)}
