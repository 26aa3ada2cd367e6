"""Writing a bundle so that OUT is either as it was or complete."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import get_total_parameters, save_config
from safetensors import SafetensorError

from ..errors import RedrafterError
from .report import Progress
from .tensors import read_headers

SHARD_BYTES = 1 << 30


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A hidden directory beside ``out`` that is gone afterwards, whatever happens.

    A process that is killed leaves its directory behind unlocked; the next conversion into the
    same place removes it.

    Raises:
        RedrafterError: If another conversion into ``out`` is running, or the disk is full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(out)
        directory = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    except OSError as error:
        raise RedrafterError(
            f"'{out.parent}' cannot be written to ({error.strerror}): choose another --mlx-path."
        ) from None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield directory
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise RedrafterError(
            f"The disk that holds '{out.parent}' is full, and nothing was changed: "
            "free space or choose another --mlx-path."
        ) from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(handle)


def _is_full(error: Exception) -> bool:
    """Whether a write found no room, in the words of Python, mlx or safetensors."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "Unable to write" in str(error) or "I/O error" in str(error)


def _prefix(out: Path) -> str:
    return f".{out.name}.convert-"


def _replaced(out: Path) -> Path:
    """Where an overwritten bundle waits for the instant between two renames."""
    return out.parent / f".{out.name}.replaced"


def clear_stale(out: Path) -> None:
    """Remove what killed conversions into ``out`` left, and undo a replacement cut in half.

    Raises:
        RedrafterError: If another conversion into ``out`` is running.
    """
    if _replaced(out).exists():
        if out.exists():
            shutil.rmtree(_replaced(out), ignore_errors=True)
        else:
            _replaced(out).rename(out)
    for directory in out.parent.glob(_prefix(out) + "*"):
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RedrafterError(
                f"Another conversion into '{out}' is running: wait for it or choose another "
                "--mlx-path."
            ) from None
        finally:
            os.close(handle)
        shutil.rmtree(directory, ignore_errors=True)


def publish(finished: Path, out: Path) -> None:
    """Move a finished directory to ``out``, replacing what is there."""
    if not out.exists():
        finished.rename(out)
        return
    old = _replaced(out)
    out.rename(old)
    try:
        finished.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_space(directory: Path, needed: int) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        RedrafterError: If fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RedrafterError(
            f"The conversion needs {needed / 1e9:.1f} GB beside its output, but only "
            f"{free / 1e9:.1f} GB are free: make room or choose another --mlx-path."
        )


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
    shards = _shards({name: array.nbytes for name, array in weights.items()}, shard_bytes)
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


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = []
    size = 0
    for name, nbytes in sizes.items():
        if not shards or size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards
