"""Noise that belongs to a seed and a position of a text, and to nothing else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .system.device import on_gpu


def noise_rows(seed: int, first: int, count: int, vocab_size: int) -> mx.array:
    """Gumbel noise for positions first .. first + count - 1, float32 (count, vocab_size).

    Row i depends on (seed, first + i) and nothing else, but for where it is made: a GPU takes
    mlx's generator. On a CPU mlx makes random numbers and their logarithms one by one, NumPy many
    at a time; a seed's text there is therefore another one.
    """
    if on_gpu():
        keys = _keys(seed, mx.arange(first, first + count, dtype=mx.uint32))[0]
        return mx.vmap(lambda key: mx.random.gumbel((vocab_size,), key=key))(keys)
    rows = np.empty((count, vocab_size), np.float32)
    for row, position in zip(rows, range(first, first + count), strict=True):
        # The position is in the counter's upper half, so that rows never meet.
        bits = np.random.Philox(key=[seed, 0], counter=[0, 0, position, 0])
        np.random.Generator(bits).random(out=row, dtype=np.float32)
    with np.errstate(divide="ignore"):  # of zero, whose token is never drawn
        for _ in range(2):
            np.negative(np.log(rows, out=rows), out=rows)
    return mx.array(rows)


def coins(seed: int, positions: mx.array) -> mx.array:
    """A number from 0 to 1 for each position, float32 (n,), independent of the noise there."""
    keys = _keys(seed, positions.astype(mx.uint32))[1]
    return mx.vmap(lambda key: mx.random.uniform(key=key))(keys)


def _keys(seed: int, positions: mx.array) -> list[mx.array]:
    """Two independent keys for each position, (n, 2) each."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    bases = mx.random.split(mx.array([high, low], dtype=mx.uint32), 2)
    # Threefry keys are two words: one stays the seed's, the other takes the position in.
    return [
        mx.stack([mx.broadcast_to(base[0], positions.shape), base[1] ^ positions], axis=1)
        for base in bases
    ]
