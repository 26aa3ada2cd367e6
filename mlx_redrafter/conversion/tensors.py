"""Tensors of a checkpoint before they are loaded: names, shapes, finiteness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..errors import RedrafterError
from .report import Progress

DRAFTER_PREFIX = "drafter."
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is; dtype in safetensors' words (F32, BF16, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Names, types and shapes of all tensors; no data is read.

    Raises:
        RedrafterError: If a file is truncated or damaged, or a tensor is stored twice.
    """
    found: dict[str, TensorInfo] = {}
    for path in files:
        shown = path.resolve()
        try:
            with safe_open(str(path), framework="numpy") as stream:
                for name in stream.keys():  # noqa: SIM118 - safe_open is no mapping
                    if name in found:
                        raise RedrafterError(
                            f"The tensor '{name}' is stored twice, in '{found[name].file.name}' "
                            f"and '{shown.name}': leave one of the two forms in the directory."
                        )
                    part = stream.get_slice(name)
                    found[name] = TensorInfo(path, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise RedrafterError(
                f"'{shown}' is truncated or damaged ({error}): download or export it again."
            ) from None
    return found


def check_names(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    what: str,
    because: str,
) -> None:
    """Compare tensor names and shapes with what a configuration calls for.

    Args:
        expected: Shapes by name.
        found: Shapes by name.
        what: "The target" or "The drafter".
        because: What the expectation rests on, for the message.

    Raises:
        RedrafterError: Naming the first missing, unexplained or misshapen tensor.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing:
        name = missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        there = f"; found '{extra[0]}' {found[extra[0]]} instead" if extra else ""
        raise RedrafterError(
            f"{what} lacks the tensor '{name}'{more}: {because} calls for it in shape "
            f"{expected[name]}{there}; export the checkpoint again or correct its config.json."
        )
    if extra:
        name = extra[0]
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise RedrafterError(
            f"{what} holds a tensor '{name}' of shape {found[name]}{more}, where {because} calls "
            "for none: remove it or correct config.json."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise RedrafterError(
                f"{what}'s tensor '{name}' has shape {found[name]}, where {because} calls for "
                f"{shape}: the weights and the config.json are not of the same model."
            )


def check_types(
    tensors: Mapping[str, TensorInfo], what: str, allowed: tuple[str, ...] = FLOATS
) -> None:
    """Refuse tensors of other types than ``allowed``, in safetensors' words.

    Raises:
        RedrafterError: Naming the first of them.
    """
    for name, info in tensors.items():
        if info.dtype not in allowed:
            raise RedrafterError(
                f"{what}'s tensor '{name}' is stored as {info.dtype}, expected "
                f"{' or '.join(allowed)}: convert it before saving."
            )


def check_finite(tensors: Mapping[str, TensorInfo], what: str, progress: Progress) -> None:
    """Read every floating-point tensor once and look for NaN and infinity.

    Raises:
        RedrafterError: Naming the first tensor that holds one.
    """
    sizes = {path: path.stat().st_size for path in dict.fromkeys(i.file for i in tensors.values())}
    total, done = sum(sizes.values()), 0
    for path, size in sizes.items():
        arrays = mx.load(str(path))
        assert isinstance(arrays, dict)
        for name in list(arrays):
            array = arrays.pop(name)
            if name in tensors and mx.issubdtype(array.dtype, mx.floating):
                _require_finite(name, array, what)
                progress(f"Checking {what.lower()}", done + array.nbytes, total)
                done += array.nbytes
                size -= array.nbytes
        done += max(size, 0)
        progress(f"Checking {what.lower()}", min(done, total), total)
    mx.clear_cache()


def _require_finite(name: str, array: mx.array, what: str) -> None:
    if mx.isfinite(array).all().item():
        return
    bad = array.size - int(mx.isfinite(array).sum())
    raise RedrafterError(
        f"{what}'s tensor '{name}' {tuple(array.shape)} holds {bad} NaN or infinite values where "
        "finite numbers are expected: the checkpoint is damaged or its training diverged."
    )


def split_drafter(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Tensors that are a target's, and those under ``drafter.``, both under their stored names."""
    own = {k: v for k, v in tensors.items() if not k.startswith(DRAFTER_PREFIX)}
    return own, {k: v for k, v in tensors.items() if k.startswith(DRAFTER_PREFIX)}
