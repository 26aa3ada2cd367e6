"""What drafting a token costs to read, against what the target costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from ..drafter import Drafter
from ..rows import output_module
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
        target_bytes_per_token: Weights that the target reads for one token: all but an input
            embedding of its own, of which it reads a row. Experts are counted whole.
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
    """Sizes of a drafter, saved in ``dtype`` (as it is by default), and of its target."""

    def own_bytes(value: mx.array) -> int:
        floating = dtype is not None and mx.issubdtype(value.dtype, mx.floating)
        return value.size * dtype.size if floating and dtype is not None else value.nbytes

    flat = dict(tree_flatten(drafter.parameters()))
    stored = sum(own_bytes(value) for value in flat.values())
    counted = {k: v for k, v in flat.items() if k != "draft_tokens"}
    read = sum(own_bytes(v) for k, v in counted.items())
    read //= drafter.config.independent_heads or 1
    if drafter.config.shared_rows:
        module = output_module(target)
        rows = sum(v.nbytes for _, v in tree_flatten(module.parameters())) if module else 0
        read += rows * drafter.config.head_size // target.vocab_size
    return DraftSizes(
        drafter_parameters=sum(value.size for value in counted.values()),
        drafter_bytes=stored,
        bytes_per_drafted_token=read,
        target_parameters=get_total_parameters(target.model),
        target_bytes_per_token=_target_bytes(target),
    )


def _target_bytes(target: Teacher) -> int:
    total = sum(value.nbytes for _, value in tree_flatten(target.model.parameters()))
    output = output_module(target)
    for _, module in target.model.named_modules():
        is_embedding = isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
        if is_embedding and module is not output and output is not None:
            total -= sum(value.nbytes for _, value in tree_flatten(module.parameters()))
    return total
