"""What drafting a token costs to read, against what the target costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from ..drafting.drafter import Drafter
from .teacher import Teacher


@dataclass(frozen=True)
class DraftSizes:
    """Sizes of a drafter and its target.

    Attributes:
        drafter_parameters: Numbers in the drafter, rows that it shares with the target left out.
        drafter_bytes: Of its file.
        bytes_per_drafted_token: Weights read to advance all beams by one token, shared output rows
            included.
        target_parameters: Numbers in the target.
        target_bytes_per_token: Weights that the target reads for one token, in the drafter's
            precision where they are not quantised: all but an input embedding of its own, of which
            it reads a row. Experts are counted whole.
    """

    drafter_parameters: int
    drafter_bytes: int
    bytes_per_drafted_token: int
    target_parameters: int
    target_bytes_per_token: int

    @property
    def share(self) -> float:
        """Bytes of a drafted token per byte of a target's token."""
        return self.bytes_per_drafted_token / max(self.target_bytes_per_token, 1)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "share": self.share}


def draft_sizes(target: Teacher, drafter: Drafter, dtype: mx.Dtype | None = None) -> DraftSizes:
    """Sizes of a drafter and its target.

    Args:
        target: The target.
        drafter: The draft head.
        dtype: Of all weights that are not packed; None takes them as they are. Both are counted
            alike, since on a CPU a target is opened in float32 whatever it is stored in.
    """

    def own_bytes(value: mx.array) -> int:
        if dtype is None or not mx.issubdtype(value.dtype, mx.floating):
            return value.nbytes
        return value.size * dtype.size

    flat = dict(tree_flatten(drafter.parameters()))
    stored = sum(own_bytes(value) for value in flat.values())
    counted = {k: v for k, v in flat.items() if k != "draft_tokens"}
    read = sum(own_bytes(v) for k, v in counted.items())
    read //= drafter.config.independent_heads or 1
    if drafter.config.shared_rows:
        module = target.output_head.module if target.output_head else None
        rows = _bytes(module, own_bytes) if module else 0
        read += rows * drafter.config.head_size // target.vocab_size
    return DraftSizes(
        drafter_parameters=sum(value.size for value in counted.values()),
        drafter_bytes=stored,
        bytes_per_drafted_token=read,
        target_parameters=get_total_parameters(target.model),
        target_bytes_per_token=_target_bytes(target, own_bytes),
    )


def _bytes(module: Any, own_bytes: Callable[[mx.array], int]) -> int:
    return sum(own_bytes(value) for _, value in tree_flatten(module.parameters()))


def _target_bytes(target: Teacher, own_bytes: Callable[[mx.array], int]) -> int:
    total = _bytes(target.model, own_bytes)
    output = target.output_head.module if target.output_head else None
    for _, module in target.model.named_modules():
        is_embedding = isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
        if is_embedding and module is not output and output is not None:
            total -= _bytes(module, own_bytes)
    return total
