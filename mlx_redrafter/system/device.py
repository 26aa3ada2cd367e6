"""What mlx computes on by default, and what is worth doing there."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from .blas import is_loaded

# Products that OpenBLAS takes as they are; before larger ones it lays the matrix out again.
SMALL_PRODUCT = 1_000_000


def on_gpu() -> bool:
    """Whether mlx computes on a GPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def fuses_drafts() -> bool:
    """Whether fusing a draft's small operations pays: where each is a launch, on Metal.

    On a CPU mlx would call a C++ compiler for seconds after every restart, to save a tenth of a
    draft. On CUDA a fused draft takes a quarter less time, but mlx compiles it for tens of seconds,
    every shape again.
    """
    return on_gpu() and mx.metal.is_available()


def plans_attention(dtype: mx.Dtype) -> bool:
    """Whether attention of this precision is planned again for each number of rows it is given.

    So it is on CUDA, where mlx leaves half precision over several rows to cuDNN: a plan takes tens
    of milliseconds, and a text that grows would need one a step.
    """
    return on_gpu() and mx.cuda.is_available() and dtype in (mx.float16, mx.bfloat16)


def takes_columns(matrix: mx.array) -> bool:
    """Whether this matrix is multiplied by a column faster than a row by its transpose.

    OpenBLAS has kernels for small products that spare it laying out the matrix, but those for a
    transpose only up to a fraction of the size.
    """
    small = matrix.dtype == mx.float32 and matrix.size <= SMALL_PRODUCT
    return small and not on_gpu() and _has_openblas()


@cache
def _has_openblas() -> bool:
    return is_loaded()
