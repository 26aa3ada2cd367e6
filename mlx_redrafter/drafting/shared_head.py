"""The target's output rows: what turns its final hidden state into logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..errors import RedrafterError
from .drafter import Drafter


class Head(Protocol):
    """See ``target.output_head.OutputHead``."""

    @property
    def plain_module(self) -> Any | None:
        """The layer with the rows, if it is one; without an adapter of its own."""

    @property
    def rows(self) -> mx.array:
        """The rows, float32."""


class HasOutputHead(Protocol):
    """What is asked of the target, see ``target.Target``."""

    @property
    def output_head(self) -> Head | None:
        """Where the output rows are; None where they were not found."""


def output_rows(target: HasOutputHead) -> mx.array | None:
    """The target's output rows (vocab_size, hidden_size) as float32, dequantised.

    None where none were found.
    """
    return None if target.output_head is None else target.output_head.rows


def share_rows(drafter: Drafter, target: HasOutputHead) -> None:
    """Let a drafter use the target's output rows: those themselves, or for a small head some.

    Rows of a quantised layer stay as they are packed.

    Raises:
        RedrafterError: If the target has no output rows of that width.
    """
    rows = _rows(target, None if drafter.config.draft_vocab_size is None else drafter.draft_tokens)
    drafter.bind_rows(rows)


def shareable(target: HasOutputHead) -> Any:
    """The layer whose rows a drafter may share.

    Raises:
        RedrafterError: If the target has no output rows as wide as its hidden state.
    """
    module = target.output_head.plain_module if target.output_head else None
    if module is None:
        raise RedrafterError(
            "This model has no output rows as wide as its hidden state, so they cannot be shared: "
            "use a drafter with rows of its own."
        )
    return module


def _rows(target: HasOutputHead, tokens: mx.array | None) -> Callable[[mx.array], mx.array]:
    module = shareable(target)

    def pick(name: str) -> mx.array | None:
        values: mx.array | None = module.get(name)
        return values if values is None or tokens is None else mx.take(values, tokens, axis=0)

    weight, bias = module.weight if tokens is None else mx.take(module.weight, tokens, axis=0), None
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        bias = pick("bias")
    if not _quantised(module):
        return lambda x: _plus(x @ weight.T, bias)
    scales: Any = pick("scales")
    biases, packing = pick("biases"), _packing(module)
    return lambda x: _plus(mx.quantized_matmul(x, weight, scales, biases, True, **packing), bias)


def _plus(x: mx.array, bias: mx.array | None) -> mx.array:
    return x if bias is None else x + bias


def _quantised(module: Any) -> bool:
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)


def _packing(module: Any) -> dict[str, Any]:
    return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
