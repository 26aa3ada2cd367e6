"""Whether arrays still hold the numbers that they held.

mlx changes an array in place (``weight[0] = row``, ``weight += step``) by giving the same Python
object other memory, so that neither the object's identity nor what was made of it shows the change.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .device import on_gpu


class Snapshot:
    """Arrays as they are now.

    It keeps a second handle on the memory of each. While there is one, mlx writes new numbers
    elsewhere, so that an unchanged address means unchanged numbers; the handles cost no memory
    until something changes.

    Args:
        arrays: Evaluated here.
    """

    def __init__(self, arrays: Sequence[mx.array]):
        mx.eval(*arrays)
        self._arrays = list(arrays)
        self._handles = [array.reshape(array.shape) for array in arrays]
        self._addresses = [] if _on_cuda() else list(map(_address, self._handles))

    def matches(self, arrays: Sequence[mx.array]) -> bool:
        """Whether these are the same arrays with the same numbers; some microseconds for each."""
        same = len(arrays) == len(self._arrays) and all(map(operator.is_, arrays, self._arrays))
        if not same:
            return False
        if self._addresses:
            return all(map(operator.eq, map(_address, arrays), self._addresses))
        pairs = zip(arrays, self._handles, strict=True)
        equal = [mx.array_equal(now, then, equal_nan=True) for now, then in pairs]
        return not equal or bool(mx.stack(equal).all().item())


def _on_cuda() -> bool:
    """Whether looking at an array's address would move it from the device's memory."""
    return on_gpu() and not mx.metal.is_available()


def _address(array: mx.array) -> int:
    # bfloat16 is no format of Python's buffers; seen as another type it keeps its memory.
    plain: Any = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    address: int = np.asarray(memoryview(plain)).__array_interface__["data"][0]
    return address
