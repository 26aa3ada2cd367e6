"""A line that somebody types, without a signal lost that comes while it is awaited."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any

from .ending import ENDS, in_main_thread, signals

# Seconds that the main thread has to heed a signal before it is sent once more.
PATIENCE = 0.2


def typed_line(prompt: str = "") -> str:
    """What is typed up to Enter, as ``input`` gives it.

    Raises:
        EOFError: On Ctrl-D.
        KeyboardInterrupt: On Ctrl-C.
    """
    with heard_while_waiting():
        return input(prompt)


@contextmanager
def heard_while_waiting() -> Iterator[None]:
    """Inside the block, which only waits, no signal that ends something is missed.

    Python runs a signal's handler between two steps of the program. One that comes after the last
    of them and before the system waits interrupts nothing, and is heeded at the next key, which in
    a program that is to end nobody presses. So what was not heeded is sent again.
    """
    if not in_main_thread() or not hasattr(signal, "pthread_kill"):  # Windows has none
        yield
        return
    ends, over, before = os.pipe(), threading.Event(), -1
    coming, noted = FileIO(ends[0]), FileIO(ends[1], "w")
    handlers = {number: signal.getsignal(number) for number in signals(("SIGINT", *ENDS))}
    told = coming, over, handlers, threading.get_ident()
    again = threading.Thread(target=_send_again, args=told, daemon=True)
    try:
        os.set_blocking(noted.fileno(), False)  # as set_wakeup_fd wants it
        before = signal.set_wakeup_fd(noted.fileno(), warn_on_full_buffer=False)
        again.start()
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        noted.close()  # which ends the thread


def _send_again(
    coming: FileIO, over: threading.Event, handlers: dict[int, Any], waiting: int
) -> None:
    """Send every end whose number comes to thread ``waiting`` once more, until it is ``over``."""
    with coming:
        while noted := coming.read(1):
            number = noted[0]
            if over.wait(PATIENCE) or number not in handlers:
                continue
            if signal.getsignal(number) == handlers[number]:  # else it was heeded, and changed that
                signal.pthread_kill(waiting, number)
