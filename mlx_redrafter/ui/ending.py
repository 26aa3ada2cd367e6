"""Signals that end a program, heeded so that what has to be put right first is put right."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# The second tells that the terminal is gone; Windows has none.
ENDS = ("SIGTERM", "SIGHUP")
# Seconds until a signal that was lost is sent again: the destructor is over by then.
LATER = 0.02


def in_main_thread() -> bool:
    """Only the main thread may set handlers, and only it gets Ctrl-C."""
    return threading.current_thread() is threading.main_thread()


def signals(names: Iterable[str]) -> list[int]:
    """The numbers of those signals that this system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def heed_ends() -> list[int]:
    """Have the signals that end a program do so by way of its ``finally``; returns which.

    Those that whoever started it has ignored, as nohup does, stay ignored.
    """
    if not in_main_thread():
        return []
    heard = [number for number in signals(ENDS) if signal.getsignal(number) is signal.SIG_DFL]
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


@contextmanager
def lost_ends_repeated() -> Iterator[None]:
    """Inside the block no signal is lost whose exception falls into a destructor.

    Python lets no exception out of one: it prints that it was ignored, and the program goes on as
    if there had been no Ctrl-C. So the signal is sent once more.
    """
    before, sent = sys.unraisablehook, list[threading.Timer]()

    def hook(unraisable: UnraisableHookArgs) -> None:
        number = _signal_of(unraisable.exc_value)
        if number is None or not in_main_thread():
            before(unraisable)
            return
        if signal.getsignal(number) is signal.SIG_DFL:  # since _leave was called, in vain
            signal.signal(number, _leave)
        sent.append(threading.Timer(LATER, os.kill, (os.getpid(), number)))
        sent[-1].daemon = True
        sent[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for again in sent:
            again.cancel()


def _signal_of(error: BaseException | None) -> int | None:
    """The signal that an exception stands for; None for any other."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    code = error.code if isinstance(error, SystemExit) else None
    return code - 128 if isinstance(code, int) and code - 128 in signals(ENDS) else None
