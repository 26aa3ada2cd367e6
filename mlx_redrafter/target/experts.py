"""Mixtures of experts whose weights are not packed, which mlx computes in float32 only on a CPU."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from ..system.device import on_gpu


def needs_float32(model: nn.Module) -> bool:
    """Whether mlx can compute this model here in float32 only.

    Packed experts it computes in any precision; a recipe, a group size or a GGUF file may leave
    some as they are.
    """
    return not on_gpu() and any(isinstance(module, SwitchLinear) for module in model.modules())


def make_computable(model: nn.Module) -> nn.Module:
    """Cast a model that could not be computed here otherwise; returns it."""
    if needs_float32(model):
        model.set_dtype(mx.float32)
    return model
