"""A fast BLAS for mlx's CPU backend on Linux.

The Linux wheel of mlx links a reference BLAS that multiplies float32 matrices at about 2 GFLOP/s on
one core. Symbols of a library loaded with RTLD_GLOBAL beforehand win over it, so loading OpenBLAS
before mlx is first imported makes mlx call OpenBLAS. On other systems there is nothing to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

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
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        _leave_a_core(library)
        return True
    return False


def _leave_a_core(library: ctypes.CDLL) -> None:
    """Have OpenBLAS use one thread less than there are cores, and at least one.

    Its threads spin while they wait for the next product. With one on every core they take turns
    with the thread that builds the next step's graph, and decoding gets slower.
    """
    set_threads = getattr(library, "openblas_set_num_threads", None)
    if set_threads is not None:
        set_threads(max(1, (os.cpu_count() or 1) - 1))


def is_loaded() -> bool:
    """Whether this process has a system OpenBLAS in memory (Linux)."""
    try:
        return "/libopenblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
