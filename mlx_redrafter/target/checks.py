"""What is looked at once, before a model is used: its numbers, and its hidden states."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import RedrafterError
from .output_head import OutputHead

# Beside weights that are packed in whole numbers: quantised ones, and BitNet's ternary ones.
_SCALES = ("scales", "weight_scale")
# Logits of tokens that the rows rank the other way may differ by this share of their spread.
ROUNDING = 0.02


def check_kinds(model: nn.Module, where: object) -> None:
    """Refuse whole numbers where a layer multiplies by fractions.

    Args:
        model: Its weights may still be lazy.
        where: The file or directory they come from, for the sentence.

    Raises:
        RedrafterError: Naming the tensor.
    """
    for path, module in model.named_modules():
        if any(name in module for name in _SCALES):
            continue
        for name in ("weight", "bias"):
            value = module.get(name)
            if isinstance(value, mx.array) and not mx.issubdtype(value.dtype, mx.inexact):
                raise RedrafterError(
                    f"{where}: the tensor {path}.{name} holds whole numbers ({value.dtype}) where "
                    "weights are fractions: fetch or convert it again."
                )


def check_weights(module: nn.Module, where: object) -> None:
    """Refuse weights that are not finite, in one pass over them.

    Args:
        module: Its parameters are evaluated.
        where: The file or directory they come from, for the sentence.

    Raises:
        RedrafterError: Naming the tensor.
    """
    floating = [
        (name, weight)
        for name, weight in tree_flatten(module.parameters())
        if mx.issubdtype(weight.dtype, mx.floating) and weight.size
    ]
    # Extremes carry NaN along and need no memory of their own.
    ends = [(mx.max(weight), mx.min(weight)) for _, weight in floating]
    mx.eval(ends)
    for (name, _), (highest, lowest) in zip(floating, ends, strict=True):
        if not (mx.isfinite(highest).item() and mx.isfinite(lowest).item()):
            raise RedrafterError(
                f"{where}: the tensor {name} holds numbers that are not finite (NaN or infinity), "
                "so the model cannot compute anything: fetch or convert it again."
            )


def check_numbers(model: nn.Module, logits: mx.array, where: object) -> None:
    """Refuse a model that computes no numbers.

    Args:
        model: Whose weights are searched for the reason.
        logits: Of some forward.
        where: What computes no numbers, to begin the sentence with.

    Raises:
        RedrafterError: If a logit is NaN or infinite; names the tensor that is, where one is.
    """
    # Minus infinity is how some models rule tokens out.
    if mx.all(logits < mx.inf).item():
        return
    for name, weight in tree_flatten(model.parameters()):
        floating = mx.issubdtype(weight.dtype, mx.floating)
        if floating and not mx.all(mx.isfinite(weight)).item():
            raise RedrafterError(
                f"{where} cannot compute anything: the tensor {name} holds numbers that are not "
                "finite (NaN or infinity); fetch or convert the weights again."
            )
    cause = "its configuration is not that of its weights"
    if logits.dtype != mx.float32:
        cause += f", or {str(logits.dtype)[9:]} is too narrow for it (load it in float32)"
    raise RedrafterError(
        f"{where} computes logits that are not finite (NaN or infinity) from weights that are: "
        f"{cause}."
    )


def ranks_like(head: OutputHead, hidden: mx.array, logits: mx.array) -> bool:
    """Whether the output rows times the hidden state put tokens in the order of the logits.

    Scales and soft caps after the rows keep the order; anything else means that the hidden state,
    or the rows, are not what they are taken for.

    Args:
        head: The output head.
        hidden: (n, width).
        logits: (n, vocab_size).
    """
    mine, theirs = head.logits(hidden).astype(mx.float32), logits.astype(mx.float32)
    possible = theirs > -mx.inf
    lowest = mx.min(mx.where(possible, theirs, mx.inf), axis=-1, keepdims=True)
    mine, theirs = mx.where(possible, mine, -mx.inf), mx.maximum(theirs, lowest)
    ranked = mx.take_along_axis(theirs, mx.argsort(mine, axis=-1), axis=-1)
    falls = mx.max(mx.cummax(ranked, axis=-1) - ranked, axis=-1)
    spread = mx.max(theirs - lowest, axis=-1)
    return bool(mx.all(falls <= ROUNDING * spread).item())
