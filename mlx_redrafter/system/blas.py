"""A fast BLAS for mlx's CPU backend on Linux.

The Linux wheel of mlx links a reference BLAS that multiplies float32 matrices at about 2 GFLOP/s on
one core. Symbols of a library loaded with RTLD_GLOBAL beforehand win over it, so loading OpenBLAS
before mlx is first imported makes mlx call OpenBLAS. On other systems there is nothing to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

OPENBLAS_NAMES = ("libopenblas.so.0", "libopenblas.so")
# OpenBLAS reads this variable when it is loaded: for so many cycles, a power of two, its threads
# spin before they sleep. Its own 26 is 25 ms: after each step that took all cores they slow down
# the next three or four tokens of a small model. 20 is a third of a millisecond, which still spans
# what lies between the products of a forward.
SPIN_VARIABLE = "OPENBLAS_THREAD_TIMEOUT"
SPIN_CYCLES_LOG2 = "20"
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
    with _short_spin():
        for name in OPENBLAS_NAMES:
            with suppress(OSError):
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
                return True
    return False


@contextmanager
def _short_spin() -> Iterator[None]:
    """Have OpenBLAS's threads spin for a short while only, unless the user says for how long."""
    if SPIN_VARIABLE in os.environ:
        yield
        return
    os.environ[SPIN_VARIABLE] = SPIN_CYCLES_LOG2
    try:
        yield
    finally:
        del os.environ[SPIN_VARIABLE]


def share_cores(*, leave_one: bool) -> None:
    """Have OpenBLAS use all its threads from now on, or leave a core to others; at least one.

    All are those that it began with: the cores that this process may use, or fewer where the user's
    OPENBLAS_NUM_THREADS says so.

    Its threads spin for a while as they wait for the next product. Where the host builds the next
    step's graph meanwhile, they take turns with it on the same core, and everything gets slower.
    Nothing happens where OpenBLAS is not loaded.
    """
    threads = _threads()
    if threads is not None:
        set_threads, all_threads = threads
        set_threads(max(1, all_threads - leave_one))


def usable_cores() -> int:
    """Cores that mlx may use on a CPU: OpenBLAS's threads, or those open to this process."""
    threads = _threads()
    if threads is not None:
        return threads[1]
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _threads() -> tuple[Callable[[int], None], int] | None:
    """What sets OpenBLAS's number of threads, and the number that it began with."""
    if not is_loaded():
        return None
    for name in OPENBLAS_NAMES:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            return library.openblas_set_num_threads, int(library.openblas_get_num_threads())
    return None


def is_loaded() -> bool:
    """Whether this process has a system OpenBLAS in memory (Linux)."""
    try:
        return "/libopenblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
