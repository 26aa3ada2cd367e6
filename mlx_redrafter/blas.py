"""A fast BLAS for mlx's CPU backend on Linux.

The Linux wheel of mlx links a reference BLAS that multiplies float32 matrices at about 2 GFLOP/s on
one core. Symbols of a library loaded with RTLD_GLOBAL beforehand win over it, so loading OpenBLAS
before mlx is first imported makes mlx call OpenBLAS. On other systems there is nothing to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import cast

OPENBLAS_NAMES = ("libopenblas.so.0", "libopenblas.so")
INSTALL_HINT = (
    "OpenBLAS was not found, so float32 runs tens of times slower on this CPU: "
    "install it with 'apt-get install libopenblas0-pthread' (Debian, Ubuntu) or your system's like."
)


def preload_openblas() -> bool:
    """Load OpenBLAS for all later libraries; return whether mlx will use it.

    False off Linux, where mlx has its own fast paths, when no OpenBLAS is installed, and when mlx
    was imported before, since its symbols are bound by then.
    """
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return False
    for name in OPENBLAS_NAMES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def share_cores(*, leave_one: bool) -> None:
    """Have OpenBLAS use every core from now on, or leave one to other threads; at least one.

    Its threads spin while they wait for the next product. Where the host builds the next step's
    graph meanwhile, they take turns with it on the same core, and everything gets slower. Nothing
    happens where OpenBLAS is not loaded.
    """
    set_threads = _thread_setter()
    if set_threads is not None:
        set_threads(max(1, (os.cpu_count() or 1) - leave_one))


@cache
def _thread_setter() -> Callable[[int], None] | None:
    if not is_loaded():
        return None
    for name in OPENBLAS_NAMES:
        with suppress(OSError, AttributeError):
            return cast("Callable[[int], None]", ctypes.CDLL(name).openblas_set_num_threads)
    return None


def is_loaded() -> bool:
    """Whether this process has a system OpenBLAS in memory (Linux)."""
    try:
        return "/libopenblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
