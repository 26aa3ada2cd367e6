"""The interpreter ends after threads that decoded, not while they are still being freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlx_redrafter.system import last_threads

# What C frees when a thread ends stands in for mlx's: it sleeps first, so that it is always late,
# and takes Python's lock afterwards, which aborts or ends the thread if the interpreter is gone.
PROGRAM = """
import ctypes, os, sys, threading
from mlx_redrafter.system.last_threads import computing

libc = ctypes.CDLL(None)
Freed = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
freed = Freed(lambda _value: os.write(1, b"freed"))
sleep, say = ctypes.c_uint(), ctypes.c_uint()
libc.pthread_key_create(ctypes.byref(sleep), libc.usleep)
libc.pthread_key_create(ctypes.byref(say), freed)

def work():
    with {block}:
        pass
    libc.pthread_setspecific(sleep, ctypes.c_void_p(200_000))
    libc.pthread_setspecific(say, ctypes.c_void_p(1))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_interpreter_waits_for_what_a_thread_frees() -> None:
    waited = run(PROGRAM.format(block="computing()"))
    assert (waited.returncode, waited.stdout, waited.stderr) == (0, "freed", "")
    # The stand-in shows the fault where nothing waits.
    assert run(PROGRAM.format(block="threading.Lock()")).stdout == ""


# A thread in the middle of a step: C++ that is not to be left by an exception, as mlx's is not.
DAEMON = """
import atexit, os, threading, time
from mlx_redrafter.system.last_threads import computing

inside, atexit_ran = threading.Event(), threading.Event()
atexit.register(atexit_ran.set)  # runs before what was registered before it

def work():
    with computing():
        inside.set()
        atexit_ran.wait()
        time.sleep(0.2)
        os.write(1, b"stepped ")
    with computing():
        os.write(1, b"and again")

threading.Thread(target=work, daemon=True).start()
inside.wait()
"""


def test_a_daemon_threads_step_is_its_last() -> None:
    ended = run(DAEMON)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "stepped ", "")


def test_a_thread_that_never_ends_is_not_waited_for() -> None:
    program = """
import threading, time
from mlx_redrafter.system import last_threads
last_threads.MAX_SECONDS = 1e9
begun = threading.Event()

def work():
    with last_threads.computing():
        pass
    begun.set()
    time.sleep(1e6)

threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    assert run(program).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    program = """
import os, sys, threading
from mlx_redrafter.system import last_threads
last_threads.MAX_SECONDS = 1e9
inside, over = threading.Event(), threading.Event()

def work():
    with last_threads.computing():
        inside.set()
        over.wait()

thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
over.set()
"""
    assert run(program).returncode == 0


def test_an_end_without_a_list_of_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Off Linux: a moment's wait, and only after threads that decoded."""
    waits: list[float] = []
    monkeypatch.setattr(last_threads, "TASKS", tmp_path_factory.mktemp("none") / "task")
    monkeypatch.setattr(last_threads.time, "sleep", waits.append)
    monkeypatch.setattr(last_threads, "_remembered", set())
    monkeypatch.setattr(last_threads, "_ending", False)
    last_threads._end()
    assert waits == []
    last_threads._remembered.add(-1)
    last_threads._end()
    assert waits == [last_threads.BLIND_SECONDS]


def test_threads_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_threads, "_remembered", {-1})
    monkeypatch.setattr(last_threads, "_running", lambda: {1, 2})
    with last_threads.computing():
        pass
    assert -1 not in last_threads._remembered
    assert len(last_threads._remembered) == 1
