"""The lock of planners that several threads ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock


class PlannerLock:
    """A lock that its thread may take again, and that knows whether it is taken, if by this one."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Hold it inside the block where no thread has it, this one included; yields whether."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            if self._depth:
                yield False
                return
            with self:
                yield True
        finally:
            self._lock.release()
