"""The seams that are set into an mlx-lm model: per object, without touching its parameters.

A hooked module gets a subclass made for it, so parameter names, ``isinstance`` and attributes stay
as they were. Hooking a model twice finds the hooks of the first time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache.forward_context import ForwardContext
from ..errors import RedrafterError
from . import architectures
from .attention_patches import (
    BLOCK_METHOD,
    GROUPED_SCORES,
    SCALED_BY_ROW,
    block_method,
    chunked_call,
    grouped_call,
    rebound,
)
from .output_head import Tap
from .patching import set_call
from .positions import has_no_rotary
from .recurrent_hooks import (
    CONVOLUTION_METHOD,
    TAKES_STATE,
    WHOLE,
    convolution_method,
    recurrent_call,
)

INNER_NAMES = ("model", "transformer", "backbone", "gpt_neox")
EMBEDDING_NAMES = (
    "embed_tokens",
    "wte",
    "tok_embeddings",
    "token_embeddings",
    "embeddings",
    "embed_in",
    "embedding",
    "word_embeddings",
    "ngram_embeddings",
    "embed",
    "embd",
)


# Functions through which some modules find positions, instead of through a module of their own:
# nanochat's rotary positions, and the query scale of Mistral's models.
ROTARY_FUNCTION = "apply_rotary_emb"
SCALE_FUNCTION = "_get_llama_4_attn_scale"


# Rotary modules whose base grows with the length of the text beyond a limit.
DYNAMIC_ROTARY = "dynamicntkscaling"
# InternLM 3's adds the number of heads to the length, so the limit may come that much sooner.
DYNAMIC_MARGIN = 128


def inner_module(model: nn.Module) -> nn.Module | None:
    """The module whose output feeds the output rows; None where the layout is unknown."""
    outer = model
    while isinstance(getattr(outer, "language_model", None), nn.Module):
        outer = outer.language_model
    for name in INNER_NAMES:
        inner = getattr(outer, name, None)
        if isinstance(inner, nn.Module):
            nested = getattr(inner, "language_model", None)
            return nested if isinstance(nested, nn.Module) else inner
    return None


def embedding_of(inner: nn.Module) -> Any:
    """The token embedding of an inner module; None where none is found."""
    for name in EMBEDDING_NAMES:
        module = getattr(inner, name, None)
        if isinstance(module, nn.Module):
            nested = (getattr(module, name, None) for name in ("wte", "word_embeddings"))
            return next((found for found in nested if isinstance(found, nn.Module)), module)
    return None


def draft_limit(model: nn.Module) -> int | None:
    """The length from which rotary positions depend on how many rows are computed at once.

    Plain decoding turns each row by the length of the text up to it; several rows at once would all
    be turned by the length up to the last. None where the model has no such limit.
    """
    modules = (module for _, module in model.named_modules())
    limits = [
        int(module.max_position_embeddings) - DYNAMIC_MARGIN
        for module in modules
        if DYNAMIC_ROTARY in type(module).__name__.lower()
    ]
    return min(limits, default=None)


def hook_output(inner: nn.Module) -> Tap:
    """Make ``inner`` leave its output in a tap."""
    existing = getattr(inner, "_redrafter_tap", None)
    if isinstance(existing, Tap):
        return existing
    tap = Tap()
    inner._redrafter_tap = tap
    set_call(inner, "Tapped", _tapped_call(tap, type(inner).__call__))
    return tap


def hook_layer_outputs(model: nn.Module, layers: Sequence[int]) -> list[Tap]:
    """Make layers of a model leave what they return in taps, one a layer, in that order.

    Args:
        model: An mlx-lm model, whose ``layers`` are its blocks.
        layers: Their indices.

    Raises:
        RedrafterError: If the model has no such layers.
    """
    blocks = getattr(model, "layers", None)
    blocks = list(blocks) if isinstance(blocks, list | tuple) else []
    if any(index >= len(blocks) for index in layers):
        raise RedrafterError(
            f"The drafter reads the layers {', '.join(map(str, layers))} of its model, but this "
            f"model has {len(blocks)} that can be read: use the model it was trained for."
        )
    return [hook_output(blocks[index]) for index in layers]


def hook_layers(model: nn.Module, *, recurrent: bool) -> ForwardContext:
    """Make rotary modules, position embeddings and recurrent modules follow one ForwardContext."""
    modules = [(name.rsplit(".", 1)[-1], module) for name, module in model.named_modules()]
    found = (getattr(module, "_redrafter_context", None) for _, module in modules)
    context = next((v for v in found if v is not None), None) or ForwardContext()
    for name, module in modules:
        if hasattr(module, "_redrafter_context"):
            continue
        methods = [one for one in METHODS if hasattr(type(module), one)]
        hook, call = _hooked_call(name, module, context, recurrent)
        if call is not None or methods:
            module._redrafter_context = context
            module._redrafter_hooks = {hook, *(METHODS[one][0] for one in methods)}
            set_call(module, "Hooked", call or type(module).__call__)
        for method in methods:
            hooked = METHODS[method][1](context, getattr(type(module), method))
            setattr(type(module), method, hooked)
    return context


def missing_hooks(
    model: nn.Module, architecture: str, *, recurrent: bool, attends: bool
) -> list[str]:
    """What would have to be hooked in a model for its trees, and is not; see ``hooks_needed``.

    Hooks find mlx-lm's modules and functions by their names, which another release may change.
    """
    needed = set(architectures.hooks_needed(architecture))
    if has_no_rotary(model, attends=attends):
        needed.discard(architectures.ROTARY)
    if not attends:
        needed.discard(architectures.GROUPED_MASK)  # nor has anything heads (Gear)
    found: set[str] = set()
    if recurrent:
        needed.add(architectures.STATE)
    for _, module in model.named_modules():
        found |= getattr(module, "_redrafter_hooks", set()) - {architectures.STATE}
        if getattr(module, TAKES_STATE, False) or getattr(module, WHOLE, False):
            found.add(architectures.STATE)
    return sorted(needed - found)


def position_limit(model: nn.Module) -> int | None:
    """Rows of the model's table of positions; None where it has none."""
    tables = [
        int(module.weight.shape[0])
        for _, module in model.named_modules()
        if architectures.POSITION_TABLE in getattr(module, "_redrafter_hooks", ())
    ]
    return min(tables, default=None)


def _hooked_call(
    name: str, module: nn.Module, context: ForwardContext, recurrent: bool
) -> tuple[str, Any]:
    """What is hooked in a module, and its new call; None where nothing is."""
    kind = type(module).__name__.lower()
    if not any("__call__" in vars(base) for base in type(module).__mro__):
        return "", None  # a mere container
    base: Any = type(module).__call__
    if DYNAMIC_ROTARY in kind:
        return architectures.ROTARY, _rotary_call(context, _dynamic_call(base))
    if ("rope" in kind or "rotary" in kind) and "attention" not in kind:
        return architectures.ROTARY, _rotary_call(context, base)
    used = base.__code__.co_names if isinstance(base, FunctionType) else ()
    if SCALED_BY_ROW in used:
        return architectures.CHUNK_MASK, chunked_call(context, base)
    if GROUPED_SCORES in used:
        return architectures.GROUPED_MASK, grouped_call(context, base)
    if ROTARY_FUNCTION in used:
        turn = _rotary_call(context, _as_method(base.__globals__[ROTARY_FUNCTION]))
        return architectures.ROTARY, rebound(base, ROTARY_FUNCTION, partial(turn, None))
    if SCALE_FUNCTION in used:
        scale = _scale_call(context, base.__globals__[SCALE_FUNCTION])
        return architectures.QUERY_SCALE, rebound(base, SCALE_FUNCTION, scale)
    if name in ("wpe", "position_embeddings"):
        return architectures.POSITION_TABLE, _position_call(context, base)
    if recurrent and "cache" in inspect.signature(base).parameters:
        return architectures.STATE, recurrent_call(context, module)
    return "", None


def _as_method(function: Any) -> Any:
    return lambda _self, *args, **kwargs: function(*args, **kwargs)


def _tapped_call(tap: Tap, base: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = base(self, *args, **kwargs)
        # Some blocks return what their neighbours share beside the hidden states.
        tap.hidden = output[0] if isinstance(output, tuple) else output
        return output

    return call


def _rotary_call(context: ForwardContext, base: Any) -> Any:
    """Turn (batch, heads, n, dim) at one position a node: one row a node."""

    def call(self: Any, x: mx.array, offset: Any = 0, *args: Any, **kwargs: Any) -> Any:
        if context.tree is None:
            return base(self, x, offset, *args, **kwargs)
        at = context.positions(offset)
        if at.ndim == 1:
            turned: mx.array = base(self, x.transpose(2, 1, 0, 3), at, *args, **kwargs)
            return turned.transpose(2, 1, 0, 3)
        batch, heads, n, dim = x.shape
        rows = x.transpose(0, 2, 1, 3).reshape(batch * n, heads, 1, dim)
        turned = base(self, rows, at.reshape(-1), *args, **kwargs)
        return turned.reshape(batch, n, heads, -1).transpose(0, 2, 1, 3)

    return call


def _dynamic_call(base: Any) -> Any:
    """Below the limit such a module turns by its base as it is; a vector of offsets needs that."""

    def call(self: Any, x: mx.array, offset: Any = 0) -> Any:
        if not isinstance(offset, mx.array) or offset.ndim == 0:
            return base(self, x, offset)
        theta = getattr(self, "original_base", None) or self.base
        scale = getattr(self, "scale", 1.0)
        return mx.fast.rope(
            x, self.dims, traditional=self.traditional, base=theta, scale=scale, offset=offset
        )

    return call


def _scale_call(context: ForwardContext, base: Any) -> Any:
    """Llama 4's query scales by depth, (n, 1) or (batch, 1, n, 1); mlx-lm counts rows."""

    def call(size: int, offset: Any, *args: Any) -> Any:
        if context.tree is None:
            return base(size, offset, *args)
        at = context.positions(offset)
        shape = (-1, 1) if at.ndim == 1 else (at.shape[0], 1, -1, 1)
        return base(1, at.reshape(-1), *args).reshape(shape)

    return call


def _position_call(context: ForwardContext, base: Any) -> Any:
    """Look positions up by depth: ``ids`` (..., n) count up from the root's.

    Nodes deeper than the table reaches get its last row: what is read outside of it is another
    program's memory, and no such node is ever accepted.
    """

    def call(self: Any, ids: mx.array) -> Any:
        if context.tree is None:
            return base(self, ids)
        return base(self, mx.minimum(ids[..., :1] + context.positions(0), self.weight.shape[0] - 1))

    return call


# Methods that are hooked where a module has them: a rotary one (talkie), MiniMax M3's blocks, and
# Baichuan-M1's convolution.
METHODS = {
    "_rope": (architectures.ROTARY, _rotary_call),
    BLOCK_METHOD: (architectures.KEY_BLOCKS, block_method),
    CONVOLUTION_METHOD: (architectures.CONVOLUTION, convolution_method),
}


def private_arrays(model: nn.Module) -> list[mx.array]:
    """Arrays that modules hold under names that begin with an underscore."""
    named = (entry for module in model.modules() for entry in module.items())
    return [value for name, value in named if name[0] == "_" and isinstance(value, mx.array)]
