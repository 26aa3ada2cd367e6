"""Hooks for modules that carry recurrent state: each node of a draft tree after its own path.

A module that is given a recurrent cache, and hands it on to none within, is run over the paths of a
tree instead of its nodes. What it computes row by row is computed once a node all the same, and
kept for the replay that brings about the state of the accepted path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import (
    AllToShardedLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
    ShardedToAllLinear,
)

from ..cache.forward_context import ForwardContext
from ..cache.module_call import ModuleCall
from .patching import set_call

ROW_MODULES = (
    nn.Linear,
    nn.QuantizedLinear,
    AllToShardedLinear,
    ShardedToAllLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
)
# A module's own mark: it hands the cache that it is given on to one within it.
HANDS_ON = "_redrafter_hands_on"
# A module's own mark: it takes the caches of all layers, and runs over the paths as a whole.
WHOLE = "_redrafter_whole"
# A module's own mark: it is given a recurrent cache and hands it on to none.
TAKES_STATE = "_redrafter_takes_state"
# The mark of a hooked row-wise module.
PRODUCT = "_redrafter_product"


# Baichuan-M1's convolution, which sits inside its attention.
CONVOLUTION_METHOD = "_custom_convolution"


def recurrent_call(context: ForwardContext, module: nn.Module) -> Any:
    """A module's call that runs over paths where it is given a watched cache."""
    base: Any = type(module).__call__
    keeps_products = not _compiles(type(module))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = _watched(self, context, [*args, *kwargs.values()])
        if not given:
            return base(self, *args, **kwargs)
        last = given[-1][1]
        if context.exploring is not None:
            with _explored(context, self, last):
                return base(self, *args, **kwargs)
        if getattr(self, HANDS_ON, False) or last.num_nodes == 1:
            return base(self, *args, **kwargs)
        # A group of caches holds keys and values too, and those see nodes.
        group = next((value for value, one in given if value is not one.mlx_cache), None)
        paths = context.paths if group is None else None
        made = ModuleCall(
            run=partial(base, self), args=args, kwargs=kwargs, batch=last.batch,
            nodes=last.num_nodes, paths=paths, branching=context.tree is not None, group=group,
            keeps_products=keeps_products,
        )  # fmt: skip
        if paths is not None:
            for _, one in given:
                one.spread(paths)
        result = made.verify(context)
        # The last is the last to be brought back, and then all stand where the call began.
        for _, one in given:
            one.record(made if one is last else None)
        return result

    return call


@contextmanager
def _explored(context: ForwardContext, module: Any, cache: Any) -> Iterator[None]:
    """Mark a module that is given a cache, and those around it, which have handed it on."""
    assert context.exploring is not None
    for outer, given in context.exploring:
        if given is cache:
            setattr(outer, TAKES_STATE, False)
            setattr(outer, HANDS_ON, True)
    setattr(module, TAKES_STATE, not getattr(module, HANDS_ON, False))
    context.exploring.append((module, cache))
    watched = context.watched
    if getattr(module, WHOLE, False):
        context.watched = {}
    try:
        yield
    finally:
        context.watched = watched
        context.exploring.pop()


def _watched(module: Any, context: ForwardContext, values: list[Any]) -> list[tuple[Any, Any]]:
    """The watched caches among a call's arguments, each with what has to hear of it."""
    if not context.watched:
        return []
    if getattr(module, WHOLE, False):
        values = [entry for value in values if isinstance(value, list) for entry in value]
    pairs = ((value, context.watched.get(id(value))) for value in values)
    return [(value, cache) for value, cache in pairs if cache is not None]


def _compiles(kind: type) -> bool:
    """Whether modules fuse their step over a single row, which must not take in what was kept."""
    functions = (f for base in kind.__mro__ for f in vars(base).values())
    codes = (f.__code__ for f in functions if isinstance(f, FunctionType))
    return any("compile" in code.co_names for code in codes)


def hook_products(model: nn.Module, context: ForwardContext) -> None:
    """Hook what modules with recurrent state compute row by row."""
    for _, module in model.named_modules():
        whole = getattr(module, WHOLE, False)
        if not whole and not getattr(module, TAKES_STATE, False):
            continue
        for name, inner in module.named_modules():
            is_mlp = whole and name.rsplit(".", 1)[-1] == "mlp"
            if (is_mlp or isinstance(inner, ROW_MODULES)) and not hasattr(inner, PRODUCT):
                setattr(inner, PRODUCT, True)
                set_call(inner, "Product", _product_call(context, type(inner).__call__))


def _product_call(context: ForwardContext, base: Any) -> Any:
    def call(self: Any, x: mx.array) -> Any:
        products = context.products
        if products is None:
            return base(self, x)
        context.products = None  # what is within is a part of this product
        try:
            return products.apply(self, x, partial(base, self))
        finally:
            context.products = products

    return call


def convolution_method(context: ForwardContext, base: Any) -> Any:
    """Baichuan-M1's convolution over (batch, heads, n, dim): each node after its parent."""

    def method(self: Any, u: mx.array, weights: mx.array, state: Any = None) -> mx.array:
        paths = context.paths
        if paths is None:
            result: mx.array = base(self, u, weights, state)
            return result
        rows = paths.to_rows(u.swapaxes(1, 2)).swapaxes(1, 2)
        rows = base(self, rows, weights, None if state is None else paths.spread(state))
        return paths.to_nodes(rows.swapaxes(1, 2)).swapaxes(1, 2)

    return method
