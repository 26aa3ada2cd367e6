"""The interpreter ends between two steps of a thread that decodes, and after what a thread leaves.

Whatever returns from C++ into an interpreter that is ending aborts the process ("terminate called
without an active exception"). Two things do: a daemon thread in the middle of a step; and a thread
that Python has ended, and has joined, while what mlx kept for it is still being freed, the graphs
that it compiled there among it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
# Freeing takes well under a millisecond, a step up to seconds; the interpreter waits no longer.
MAX_SECONDS = 5.0
PAUSE_SECONDS = 0.001
# Where the system does not say which threads there are.
BLIND_SECONDS = 0.05

_ending = False
_computing: set[int] = set()
_remembered: set[int] = set()
_lock = threading.Lock()
# The child of a fork has one thread, and waits for none of its parent's.
os.register_at_fork(after_in_child=_computing.clear)


@contextmanager
def computing() -> Iterator[None]:
    """The interpreter does not end while a thread is in such a block, nor while one is freed that
    was; a daemon thread that comes to one later stays there until the process is gone."""
    thread = threading.get_native_id()
    if thread in _computing:
        yield
        return
    if _ending and threading.current_thread() is not threading.main_thread():
        _wait_for_ever()
    _computing.add(thread)
    if thread not in _remembered:
        _remember(thread)
    try:
        yield
    finally:
        _computing.discard(thread)


def _wait_for_ever() -> None:
    """Wait in C for a lock that nobody opens: a sleep would return into an ending interpreter."""
    closed = threading.Lock()
    closed.acquire()
    closed.acquire()


def _remember(thread: int) -> None:
    with _lock:
        # Of threads that come and go only those are kept that are there.
        _remembered.intersection_update(_running() or _remembered)
        _remembered.add(thread)


def _running() -> set[int] | None:
    """Ids of the process's threads as the system has them; None where it does not say."""
    with suppress(OSError):
        return {int(task.name) for task in TASKS.iterdir()}
    return None


@atexit.register
def _end() -> None:
    """Wait for threads in the middle of a step, and for those that only Python has ended."""
    global _ending
    _ending = True
    own = threading.get_native_id()
    until = time.perf_counter() + MAX_SECONDS
    while _computing - {own} and time.perf_counter() < until:
        time.sleep(PAUSE_SECONDS)
    # A daemon thread is in Python's list as long as it runs, and may never end.
    ended = _remembered - {thread.native_id for thread in threading.enumerate()}
    if ended and _running() is None:
        time.sleep(BLIND_SECONDS)
    while ended & (_running() or set()) and time.perf_counter() < until:
        time.sleep(PAUSE_SECONDS)
