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

from .limits import usable_cores
from .machine import processor_flags

OPENBLAS_NAMES = ("libopenblas.so.0", "libopenblas.so")
# OpenBLAS reads this variable when it is loaded: for so many cycles, a power of two, its threads
# spin before they sleep. Its own 26 is 25 ms: after each step that took all cores they slow down
# the next three or four tokens of a small model. 20 is a third of a millisecond, which still spans
# what lies between the products of a forward.
SPIN_VARIABLE = "OPENBLAS_THREAD_TIMEOUT"
SPIN_CYCLES_LOG2 = "20"
# And one of these, of which the first that is set counts: how many threads. Its own are as many as
# there are cores, also where a container may use a share of them only: then they wait for each
# other most of the time.
THREADS_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
# And this one: for which processor its kernels are to be. Up to 0.3.24 (Debian 12, Ubuntu 22.04) it
# takes an Intel processor that is newer than itself for one of 2004 and multiplies several times
# more slowly than it can (https://github.com/OpenMathLib/OpenBLAS/issues/4267).
KERNELS_VARIABLE = "OPENBLAS_CORETYPE"
# Its names of processors that had no AVX2.
OLD_KERNELS = frozenset({
    "Katmai", "Coppermine", "Northwood", "Prescott", "Banias", "Atom", "Core2", "Penryn",
    "Dunnington", "Nehalem", "Sandybridge", "Athlon", "Opteron", "Opteron_SSE3", "Barcelona",
    "Bobcat", "Nano",
})  # fmt: skip
# Its kernels by what /proc/cpuinfo says that a processor can do, the fastest first.
KERNELS_BY_FLAGS = (
    ("SkylakeX", frozenset({"avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl"})),
    ("Haswell", frozenset({"avx2", "fma"})),
)
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
    with _unless_set(SPIN_VARIABLE, SPIN_CYCLES_LOG2), _as_many_threads_as_cores():
        for name in OPENBLAS_NAMES:
            with suppress(OSError):
                _load(name)
                return True
    return False


@contextmanager
def _unless_set(variable: str, value: str) -> Iterator[None]:
    """Have OpenBLAS read a value, unless the user gives another; no other program inherits it."""
    if variable in os.environ:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def _as_many_threads_as_cores() -> Iterator[None]:
    """Have OpenBLAS begin with no more threads than this process has cores."""
    cores, there = usable_cores(), len(os.sched_getaffinity(0))
    if cores >= there or any(name in os.environ for name in THREADS_VARIABLES):
        yield
        return
    with _unless_set(THREADS_VARIABLES[0], str(cores)):
        yield


def _load(name: str) -> None:
    """Load a library for all later ones, again with better kernels where it chose old ones."""
    library = ctypes.CDLL(name)
    kernels = None if KERNELS_VARIABLE in os.environ else better_kernels(_kernels_of(library))
    if kernels is None:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        return
    # Another library that needs it keeps it in memory as it is; then nothing changes.
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
    with _unless_set(KERNELS_VARIABLE, kernels):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def better_kernels(chosen: str | None, flags: frozenset[str] | None = None) -> str | None:
    """OpenBLAS's name of the kernels that a processor could have; None where those it has are good.

    Args:
        chosen: Its name of those that it chose; None where it does not say.
        flags: What the processor can do, as /proc/cpuinfo has it; None: to be read, where that is
            of use, since it takes long on a machine of many cores.
    """
    if chosen not in OLD_KERNELS:
        return None
    flags = processor_flags() if flags is None else flags
    return next((name for name, needed in KERNELS_BY_FLAGS if needed <= flags), None)


def kernels() -> str | None:
    """For which processor the kernels of the OpenBLAS in memory are; None without one."""
    library = _library() if is_loaded() else None
    return _kernels_of(library) if library is not None else None


def _kernels_of(library: ctypes.CDLL) -> str | None:
    try:
        ask = library.openblas_get_corename
    except AttributeError:
        return None
    ask.restype = ctypes.c_char_p
    name = ask()
    return name.decode("ascii", "replace") if name else None


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


def busy_cores() -> int:
    """Cores that mlx keeps busy on a CPU: OpenBLAS's threads, or those open to this process."""
    threads = _threads()
    return threads[1] if threads is not None else usable_cores()


@cache
def _threads() -> tuple[Callable[[int], None], int] | None:
    """What sets OpenBLAS's number of threads, and the number that it began with."""
    library = _library() if is_loaded() else None
    if library is None:
        return None
    with suppress(AttributeError):
        return library.openblas_set_num_threads, int(library.openblas_get_num_threads())
    return None


def _library() -> ctypes.CDLL | None:
    """The system's OpenBLAS; None where there is none."""
    for name in OPENBLAS_NAMES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    return None


def is_loaded() -> bool:
    """Whether this process has a system OpenBLAS in memory (Linux)."""
    try:
        return "/libopenblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
