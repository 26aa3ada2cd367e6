"""Signals that end a program, heeded so that what has to be put right first is put right."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The second tells that the terminal is gone; Windows has none.
ENDS = ("SIGTERM", "SIGHUP")


def in_main_thread() -> bool:
    """Only the main thread may set handlers, and only it gets Ctrl-C."""
    return threading.current_thread() is threading.main_thread()


def heed_ends() -> list[int]:
    """Have the signals that end a program do so by way of its ``finally``; returns which.

    Those that whoever started it has ignored, as nohup does, stay ignored.
    """
    if not in_main_thread():
        return []
    numbers = [getattr(signal, name) for name in ENDS if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in heard:
        signal.signal(number, _leave)
    return heard


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Inside the block signals that end the program do so in good order."""
    heard = heed_ends()
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _frame: FrameType | None) -> None:
    """End the program by way of what puts things right; a second time, at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)  # as shells report a program that a signal ended
