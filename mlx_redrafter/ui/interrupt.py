"""Ctrl-C while an answer comes: the step under way is finished, then the answer ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def stoppable(items: Iterable[T]) -> Generator[T, None, None]:
    """Pass ``items`` on until Ctrl-C.

    Before the first item, and when pressed twice, Ctrl-C raises KeyboardInterrupt as usual, so that
    a long prompt can be stopped as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items  # only the main thread may set handlers, and only it gets Ctrl-C
        return
    begun = requested = False

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        if requested or not begun:
            raise KeyboardInterrupt
        requested = True

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        for item in items:
            begun = True
            yield item
            if requested:
                return
    finally:
        signal.signal(signal.SIGINT, previous)
