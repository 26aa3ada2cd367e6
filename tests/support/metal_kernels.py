"""BitNet's Metal kernel in mlx operations, so that its module runs on a CPU too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import bitlinear_layers


def bitlinear(
    *, inputs: Sequence[mx.array], template: Sequence[tuple[str, Any]], **_: Any
) -> list[mx.array]:
    """Ternary weights, four packed in a byte: row r of the bytes holds rows r, r + out / 4, ..."""
    x, packed, scale = inputs
    parts = [((packed >> shift) & 3).astype(mx.float32) - 1 for shift in (0, 2, 4, 6)]
    scale = 1 / scale if dict(template)["invert_weight_scales"] else scale
    return [(x @ mx.concatenate(parts).T * scale).astype(x.dtype)]


def install() -> None:
    """Use it where there is no Metal; the module object is mlx-lm's own."""
    if not mx.metal.is_available():
        bitlinear_layers._bitlinear_kernel = bitlinear
