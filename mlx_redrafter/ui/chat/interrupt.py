"""Ctrl-C and Ctrl-Z while an answer comes: the step under way is finished first. And the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from ..ending import heed_ends, in_main_thread

T = TypeVar("T")


def heed() -> None:
    """Have Ctrl-C raise KeyboardInterrupt even if the program was started with it ignored.

    Shells start what runs in the background so, and it passes from program to program; but whoever
    sits at a terminal wants to stop an answer, and to leave. SIGTERM and SIGHUP, which tells that
    the terminal is gone, are heeded, too: they would end the program at once, with the terminal's
    cursor hidden and its keys not echoed, and with a file that is being written left half-done.
    """
    if not in_main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    heed_ends()


def _listens() -> bool:
    return in_main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def stoppable(items: Iterable[T]) -> Generator[T, None, None]:
    """Pass ``items`` on until Ctrl-C.

    Before the first item, and when pressed twice, Ctrl-C raises KeyboardInterrupt as usual, so that
    a long prompt can be stopped as well.
    """
    if not _listens():
        yield from items
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


@contextmanager
def suspendable(pause: Callable[[], None], resume: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-Z stop the program in good order, and ``fg`` go on with it.

    Args:
        pause: Gives the terminal back as it was.
        resume: Takes it again.
    """
    stop = getattr(signal, "SIGTSTP", None)
    if stop is None or not in_main_thread() or signal.getsignal(stop) is signal.SIG_IGN:
        yield
        return

    def on_stop(_number: int, _frame: FrameType | None) -> None:
        pause()
        signal.signal(stop, signal.SIG_DFL)
        os.kill(os.getpid(), stop)  # comes back from here after fg
        signal.signal(stop, on_stop)
        resume()

    previous = signal.signal(stop, on_stop)
    try:
        yield
    finally:
        signal.signal(stop, previous)
