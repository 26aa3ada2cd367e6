"""Signals that come just before the program waits for a line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from mlx_redrafter.ui import typed


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What was sent to a handler that, like one not yet run, leaves all as it is."""
    numbers: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        numbers.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_was_not_heeded_is_sent_again(heard: list[int]) -> None:
    with typed.heard_while_waiting():
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 30
        while len(heard) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert heard[:3] == [signal.SIGTERM] * 3


def test_nothing_is_sent_once_the_line_is_there(heard: list[int]) -> None:
    with typed.heard_while_waiting():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * typed.PATIENCE)
    assert heard == [signal.SIGTERM]


def test_signals_that_end_nothing_are_left_alone(heard: list[int]) -> None:
    with typed.heard_while_waiting():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(2 * typed.PATIENCE)
    assert heard == [signal.SIGUSR1]


def test_a_handler_that_did_its_work_is_not_called_twice() -> None:
    """``_leave`` puts the default in its place: a second signal would end the program at once."""
    calls = 0

    def once(number: int, _frame: FrameType | None) -> None:
        nonlocal calls
        calls += 1
        signal.signal(number, signal.SIG_IGN)

    before = signal.signal(signal.SIGTERM, once)
    try:
        with typed.heard_while_waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * typed.PATIENCE)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == 1


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_nothing_stays_open(heard: list[int]) -> None:
    files = open_files()
    for _ in range(20):
        with typed.heard_while_waiting():
            pass
    until = time.monotonic() + 30
    while open_files() > files and time.monotonic() < until:
        time.sleep(0.01)
    assert open_files() <= files
    assert signal.set_wakeup_fd(-1) == -1
