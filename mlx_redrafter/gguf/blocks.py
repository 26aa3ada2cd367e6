"""GGUF's block types as mlx's affine quantisation, bit for bit, or as plain numbers.

A block of Q4_0, Q4_1 and Q8_0 holds 32 weights under one scale, which is mlx's affine form with
groups of 32: weight = scale * q + bias. Q4_0 is q in 0..15 about 8, Q8_0 is q in -128..127; both
get the bias that moves q to mlx's unsigned range. Multiplying a scale by a power of two is exact.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..system.limits import usable_cores
from .file import GGUFTensor, package

Array = np.ndarray[Any, Any]

GROUP = 32
KEPT_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_CHUNK = 1 << 20  # weights dequantised at a time by one thread
_THREADS = 8


@dataclass(frozen=True)
class Affine:
    """A matrix in mlx's affine quantisation, groups of 32.

    Attributes:
        weight: (..., columns * bits / 32), uint32.
        scales: (..., columns / 32), float16.
        biases: Like ``scales``.
        bits: 4 or 8.
    """

    weight: Array
    scales: Array
    biases: Array
    bits: int


def keep(tensor: GGUFTensor) -> Affine | None:
    """The same numbers in mlx's form; None for other types, and where a bias leaves float16."""
    if tensor.type not in KEPT_BITS:
        return None
    unpack = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}[tensor.type]
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[tensor.type]
    data = tensor.read()
    kept = unpack(data.reshape(*data.shape[:-1], -1, size))
    finite = np.isfinite(kept.scales).all() and np.isfinite(kept.biases).all()
    return kept if finite else None


def dequantise(tensor: GGUFTensor) -> Array:
    """The weights as float32, or as float16 where they are stored so; (shape)."""
    data = tensor.read()
    if tensor.type in ("F32", "F16"):
        return data.reshape(tensor.shape)
    gguf = package()
    kind = gguf.GGMLQuantizationType[tensor.type]
    if tensor.type == "F64":
        return data.reshape(tensor.shape).astype(np.float32)
    rows = data.reshape(-1, data.shape[-1])
    out = np.empty((len(rows), tensor.shape[-1]), np.float32)
    step = max(1, _CHUNK // max(tensor.shape[-1], 1))

    def unpack(start: int) -> None:
        part = np.ascontiguousarray(rows[start : start + step])
        with np.errstate(all="ignore"):  # NaN and infinity are told of by the caller
            out[start : start + step] = gguf.dequantize(part, kind)

    # numpy computes outside of Python's lock, so a thread a core unpacks.
    with ThreadPoolExecutor(min(_THREADS, usable_cores())) as pool:
        list(pool.map(unpack, range(0, len(rows), step)))
    return out.reshape(tensor.shape)


def _half(blocks: Array, start: int) -> Array:
    """The float16 that begins at a byte of each block."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]


def _packed(weights: Array) -> Array:
    """Bytes of (..., groups, bytes of a group) as rows of uint32."""
    rows = np.ascontiguousarray(weights.reshape(*weights.shape[:-2], -1))
    return rows.view("<u4")


def _nibbles(stored: Array) -> Array:
    """GGUF's order (low nibbles are weights 0..15, high ones 16..31) to mlx's (two a byte)."""
    in_order = np.concatenate([stored & 15, stored >> 4], axis=-1)
    return _packed(in_order[..., 0::2] | (in_order[..., 1::2] << 4))


def _q4_0(blocks: Array) -> Affine:
    scales = _half(blocks, 0)
    with np.errstate(all="ignore"):
        biases = (scales * np.float16(-8)).astype(np.float16)
    return Affine(_nibbles(blocks[..., 2:]), scales, biases, 4)


def _q4_1(blocks: Array) -> Affine:
    return Affine(_nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2), 4)


def _q8_0(blocks: Array) -> Affine:
    scales = _half(blocks, 0)
    with np.errstate(all="ignore"):
        biases = (scales * np.float16(-128)).astype(np.float16)
    # Two's complement plus 128 is the sign bit turned over.
    return Affine(_packed(blocks[..., 2:] ^ np.uint8(0x80)), scales, biases, 8)
