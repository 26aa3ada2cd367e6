"""Writing a bundle's weights, one tensor in work at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import get_total_parameters, save_config

from ..errors import RedrafterError
from ..system.packing import packed
from .report import Progress
from .tensors import read_headers

SHARD_BYTES = 1 << 30


def write_model(
    model: nn.Module,
    config: dict[str, Any],
    directory: Path,
    progress: Progress,
    stage: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write shards, index and config.json in mlx-lm's layout, one tensor in work at a time.

    Unlike mlx-lm's own writer, which computes a shard of 5 GB at once, every tensor is computed by
    itself, so that the full-precision source of no more than one is in memory. The model's arrays
    are given up.

    Args:
        model: Lazy arrays; empty afterwards.
        config: For config.json.
        directory: Existing directory.
        progress: Told the bytes written.
        stage: What to call the work.
        shard_bytes: Largest shard; a larger tensor gets its own.

    Raises:
        RedrafterError: If a tensor overflows in its new precision, or the disk is full.
    """
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    total = sum(array.nbytes for array in weights.values())
    index: dict[str, Any] = {
        "metadata": {"total_size": total, "total_parameters": get_total_parameters(model)},
        "weight_map": {},
    }
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    shards = packed(weights, lambda name: weights[name].nbytes, shard_bytes)
    done = 0
    for number, names in enumerate(shards, 1):
        many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path = directory / (many if len(shards) > 1 else "model.safetensors")
        shard = {}
        for name in names:
            shard[name] = weights.pop(name)
            compute(name, shard[name])
            done += shard[name].nbytes
            progress(stage, done, total)
            index["weight_map"][name] = path.name
        save_shard(path, shard)
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))
    save_config(
        config,
        directory / "config.json",
        keep_vision_config="vision_tower" in getattr(model, "model", {}),
    )


def compute(name: str, array: mx.array) -> None:
    """Evaluate one tensor of the output.

    Raises:
        RedrafterError: If it holds NaN or infinity, which finite inputs give only by overflow.
    """
    mx.eval(array)
    if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
        raise RedrafterError(
            f"The tensor '{name}' {tuple(array.shape)} overflows in {str(array.dtype)[9:]}, where "
            "its values should stay finite: choose --dtype bfloat16 or float32."
        )


def save_shard(path: Path, shard: dict[str, mx.array]) -> None:
    """Write one safetensors file and read its header back."""
    mx.save_safetensors(str(path), shard, metadata={"format": "mlx"})
    shard.clear()
    mx.clear_cache()
    read_headers([path])
