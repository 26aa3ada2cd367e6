"""The interpreter ends between two steps of a thread that decodes, and after what a thread leaves.

Whatever returns from C++ into an interpreter that is ending aborts the process ("terminate called
without an active exception"). Two things do: a daemon thread in the middle of a step; and a thread
that ends, while what mlx kept for it is being freed, the graphs that it compiled there among it.
Python ends daemon threads wherever they are, and joins others before that is freed.
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
# In which a daemon thread between two steps comes to the next; one that waits for work does not.
BETWEEN_STEPS_SECONDS = 0.25
PAUSE_SECONDS = 0.001
# Where the system does not say which threads there are.
BLIND_SECONDS = 0.05

_ending = False
_computing: set[int] = set()
_remembered: set[int] = set()
_stopped: set[int] = set()
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
        _wait_for_ever(thread)
    _computing.add(thread)
    if thread not in _remembered:
        _remember(thread)
    try:
        yield
    finally:
        _computing.discard(thread)


def _wait_for_ever(thread: int) -> None:
    """Wait in C for a lock that nobody opens: a sleep would return into an ending interpreter."""
    _stopped.add(thread)
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
    stepped = time.perf_counter()
    until = stepped + MAX_SECONDS
    # A daemon thread is in Python's list as long as it runs, and may never end.
    living = {thread.native_id for thread in threading.enumerate()} - {own}
    while (now := time.perf_counter()) < until and (_remembered & living) - _stopped:
        if _computing - {own}:
            stepped = now
        elif now > stepped + BETWEEN_STEPS_SECONDS:
            break
        time.sleep(PAUSE_SECONDS)
    ended = _remembered - living - {own}
    if ended and _running() is None:
        time.sleep(BLIND_SECONDS)
    while ended & (_running() or set()) and time.perf_counter() < until:
        time.sleep(PAUSE_SECONDS)
