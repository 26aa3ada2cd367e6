"""What turns scores into log-probabilities, without mlx's exponential on a CPU.

There mlx takes exponentials one by one, about 20 ns each (x86, 0.32): for 4 beams over 8,208 tokens
a fifth of a drafted level. Multiplications and additions are vectorised, so a power of two made of
a polynomial and the exponent's bits takes half the time.
"""

from __future__ import annotations

import mlx.core as mx

from ..system.device import on_gpu

LOG2_E = 1.4426950408889634
# 2^f for f from -1/2 to 1/2, interpolated at Chebyshev's points; relative error 2e-7.
_POLYNOMIAL = (
    0.001339086336353527,
    0.009676031918255982,
    0.05550357114222094,
    0.2402210748530968,
    0.6931471880262273,
    1.0000000754548972,
)
_SMALLEST_EXPONENT = -126.0  # of a float32; what is smaller adds nothing to a sum that has a 1
_EXPONENT_BITS = 23
_BIAS = 127


def log_sum_exp(scores: mx.array) -> mx.array:
    """Logarithm of the sum of exponentials along the last axis, which is kept: (..., 1).

    Args:
        scores: float32 (..., n); some of them finite, -inf for tokens that were filtered out.
    """
    if on_gpu():
        return mx.logsumexp(scores, axis=-1, keepdims=True)
    top = mx.max(scores, axis=-1, keepdims=True)
    return top + mx.log(mx.sum(_exp(scores - top), axis=-1, keepdims=True))


def _exp(x: mx.array) -> mx.array:
    """The exponential of float32 numbers from -inf to 0."""
    power = mx.maximum(x * LOG2_E, _SMALLEST_EXPONENT)
    whole = mx.round(power)
    part = power - whole
    value = _POLYNOMIAL[0] * part + _POLYNOMIAL[1]
    for coefficient in _POLYNOMIAL[2:]:
        value = value * part + coefficient
    bits = (whole.astype(mx.int32) + _BIAS) << _EXPONENT_BITS
    return value * mx.view(bits, mx.float32)
