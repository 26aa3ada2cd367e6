"""The target's output rows: what turns its final hidden state into logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..errors import RedrafterError
from .drafter import Drafter


class HasRows(Protocol):
    """What is asked of the target, see ``target.Target``."""

    model: Any
    hidden_size: int
    vocab_size: int


def output_module(target: HasRows) -> Any | None:
    """The layer with the output rows: ``lm_head``, else the input embedding that stands in for it.

    None where the model has neither with a row for each token.
    """
    found: dict[str, Any] = {}
    for name, module in target.model.named_modules():
        rows = getattr(module, "weight", None)
        if rows is None or rows.ndim != 2 or rows.shape[0] != target.vocab_size:
            continue
        kind = "lm_head" if name.endswith("lm_head") else ""
        if not kind and isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            kind = "embedding"
        found.setdefault(kind, module)
    return found.get("lm_head", found.get("embedding"))


def output_rows(target: HasRows) -> mx.array | None:
    """The target's output rows (vocab_size, hidden_size) as float32, dequantised.

    None where the model has none of that shape.
    """
    module = output_module(target)
    if module is None:
        return None
    rows = module.weight
    if _quantised(module):
        rows = mx.dequantize(rows, module.scales, module.get("biases"), **_packing(module))
    return rows.astype(mx.float32) if rows.shape[1] == target.hidden_size else None


def share_rows(drafter: Drafter, target: HasRows) -> None:
    """Let a drafter use the target's output rows: those themselves, or for a small head some.

    Rows of a quantised layer stay as they are packed.

    Raises:
        RedrafterError: If the target has no output rows of that width.
    """
    rows = _rows(target, None if drafter.config.draft_vocab_size is None else drafter.draft_tokens)
    drafter.bind_rows(rows)


def _rows(target: HasRows, tokens: mx.array | None) -> Callable[[mx.array], mx.array]:
    module = output_module(target)
    if module is None or _width(module) != target.hidden_size:
        raise RedrafterError(
            "This model has no output rows as wide as its hidden state, so they cannot be shared: "
            "use a drafter with rows of its own."
        )

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


def _width(module: Any) -> int:
    columns: int = module.weight.shape[1]
    return columns * 32 // module.bits if _quantised(module) else columns
