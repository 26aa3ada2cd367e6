"""The output head: what turns a model's final hidden state into logits, found by running it.

mlx-lm's models name it in several ways (``lm_head``, ``output``, ``embed_out``, a tied embedding),
and some apply it inside the module whose output would otherwise be the hidden state. So it is not
looked up by name: in one forward it is the last layer that produced as many numbers as there are
logits, and the hidden state is what it was given. Some models call no layer but multiply by an
array: a parameter of their own, or the weight of their input embedding where that is tied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

_ADAPTED = (LoRALinear, DoRALinear, LoRAEmbedding, DoRAEmbedding)
# Layers with a matrix that has a row for each output, by the method that multiplies by it.
_METHODS = {
    nn.Linear: "__call__",
    nn.QuantizedLinear: "__call__",
    nn.Embedding: "as_linear",
    nn.QuantizedEmbedding: "as_linear",
    LoRALinear: "__call__",
    DoRALinear: "__call__",
    LoRAEmbedding: "as_linear",
    DoRAEmbedding: "as_linear",
}


class Tap:
    """Where a model leaves the hidden states of the latest call, (batch, n, hidden_size)."""

    def __init__(self) -> None:
        self.hidden: mx.array | None = None


@dataclass(frozen=True)
class OutputHead:
    """Where a model's output rows are, and what they are multiplied with.

    Attributes:
        model: The mlx-lm model.
        path: Name of the layer in the model, or of a bare array: a parameter of the model itself,
            or the weight of its input embedding.
        width: Width of the hidden state.
    """

    model: nn.Module
    path: str
    width: int

    @property
    def module(self) -> Any | None:
        """The layer that is called, as it is now: it may have been quantised since.

        None for a bare array, by which the model multiplies without calling a layer.
        """
        found = _at(self.model, self.path)
        return found if _method_of(found) else None

    @property
    def layer(self) -> Any | None:
        """The layer that has the rows, called or not; None if they are the model's own."""
        module, holder = self.module, self.path.rpartition(".")[0]
        return module if module is not None or not holder else _at(self.model, holder)

    @property
    def plain_module(self) -> Any | None:
        """The layer with the rows as one matrix, with an adapter's part added to them."""
        layer = self.layer
        return layer.fuse(dequantize=True) if isinstance(layer, _ADAPTED) else layer

    @property
    def rows(self) -> mx.array:
        """The output rows, (vocab_size, width), float32 and dequantised."""
        module = self.plain_module
        rows: mx.array = _at(self.model, self.path) if module is None else module.weight
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            packing = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            rows = mx.dequantize(rows, module.scales, module.get("biases"), **packing)
        return rows.astype(mx.float32)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits, but for what a model does to them afterwards (scales, soft caps).

        Args:
            hidden: (..., width).

        Returns:
            (..., vocab_size).
        """
        module = self.module
        if module is None:
            return hidden @ _at(self.model, self.path).T
        multiplied: mx.array = getattr(module, _method_of(module))(hidden)
        return multiplied


def find_output_head(
    model: nn.Module, embedding: nn.Module, forward: Callable[[], tuple[mx.array, mx.array]]
) -> OutputHead | None:
    """The model's output head; None where it has none that could be found.

    Args:
        model: An mlx-lm model.
        embedding: Its input embedding, whose weight may be the head too.
        forward: Runs some tokens; gives the logits and what the inner module returned, both
            (1, n, ...). Nothing has to be evaluated.
    """
    calls: list[tuple[str, mx.array, mx.array]] = []
    layers = [(name, module) for name, module in model.named_modules() if _method_of(module)]
    classes = [type(layer) for _, layer in layers]
    for name, layer in layers:
        method = _method_of(layer)
        _override(layer, "Watched", method, _recorded(getattr(type(layer), method), name, calls))
    try:
        logits, inner = forward()
    finally:
        for (_, layer), kind in zip(layers, classes, strict=True):
            layer.__class__ = kind
    for name, given, made in reversed(calls):
        if made.shape[-1] == logits.shape[-1] and given.shape[:-1] == logits.shape[:-1]:
            return OutputHead(model, name, int(given.shape[-1]))
    wanted = (int(logits.shape[-1]), int(inner.shape[-1]))
    path = _bare_rows(model, embedding, wanted)
    return None if path is None else OutputHead(model, path, wanted[1])


def _bare_rows(model: nn.Module, embedding: nn.Module, shape: tuple[int, int]) -> str | None:
    """The array of this shape by which a model can only multiply by itself; None if unsure."""
    arrays = [(name, value) for name, value in model.items() if isinstance(value, mx.array)]
    bare = [name for name, value in arrays if value.shape == shape]
    if bare:
        return bare[0] if len(bare) == 1 else None
    # Packed, mlx-lm could not multiply by it.
    if isinstance(embedding, nn.Embedding) and embedding.weight.shape == shape:
        named = (name for name, module in model.named_modules() if module is embedding)
        return next((f"{name}.weight" for name in named), None)
    return None


def _at(model: nn.Module, path: str) -> Any:
    """The layer or array of this name in a model."""
    found: Any = model
    for name in path.split("."):
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def tap_input(module: Any) -> Tap:
    """Make an output head leave what it is given in a tap; the same one at a second time."""
    existing = getattr(module, "_redrafter_tap", None)
    if isinstance(existing, Tap):
        return existing
    tap = Tap()
    module._redrafter_tap = tap
    method = _method_of(module)
    _override(module, "Tapped", method, _tapped(getattr(type(module), method), tap))
    return tap


def _method_of(module: Any) -> str:
    return next((name for kind, name in _METHODS.items() if isinstance(module, kind)), "")


def _override(module: Any, prefix: str, method: str, call: Any) -> None:
    base = type(module)
    namespace = {method: call, "__module__": base.__module__}
    module.__class__ = type(prefix + base.__name__, (base,), namespace)


def _recorded(base: Any, name: str, calls: list[tuple[str, mx.array, mx.array]]) -> Any:
    def call(self: Any, x: mx.array) -> mx.array:
        made: mx.array = base(self, x)
        calls.append((name, x, made))
        return made

    return call


def _tapped(base: Any, tap: Tap) -> Any:
    def call(self: Any, x: mx.array) -> mx.array:
        tap.hidden = x
        made: mx.array = base(self, x)
        return made

    return call
