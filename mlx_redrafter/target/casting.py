"""The precision of a model's weights: which is wanted here, and which weights have it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from ..system.device import on_gpu
from .experts import needs_float32


def quantised_layers(module: nn.Module) -> int:
    """How many layers of a target or a drafter are quantised."""
    return sum(name.endswith("scales") for name, _ in tree_flatten(module.parameters()))


def set_precision(module: nn.Module, dtype: mx.Dtype | None) -> None:
    """Cast what a model was loaded with to the precision that is asked for, or good here.

    Args:
        module: A target or a drafter. If quantised, it keeps what it has where it runs so.
        dtype: None for what it is stored in; on a CPU for float32.
    """
    wanted = dtype or (None if on_gpu() else mx.float32)
    kept = dtype is None and quantised_layers(module) and not needs_float32(module)
    if wanted is None or kept:
        return
    if wanted == mx.float32:  # which takes nothing from what is to be kept wide
        module.set_dtype(wanted)
    else:
        cast_weights(module, wanted)


def cast_weights(module: nn.Module, dtype: mx.Dtype) -> None:
    """Cast floating-point weights as mlx-lm does when it converts: some it keeps as stored.

    A model names those by its ``cast_predicate``. A narrower bias of a router would choose other
    experts, and a narrower decay would be off further at each token.
    """
    casts = getattr(module, "cast_predicate", lambda _: True)

    def cast(name: str, array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(dtype) if floating and casts(name) else array

    module.update(tree_map_with_path(cast, module.parameters()))
