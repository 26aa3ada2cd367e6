"""Signals whose exceptions fall into a destructor, which Python would only report."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from mlx_redrafter.ui.ending import ended_in_order
from mlx_redrafter.ui.entry import command_line

class Falls:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(5)  # the exception is raised in here

@command_line("program")
def main(arguments):
    with ended_in_order():
        try:
            falls = Falls()
            del falls
            print("lost for now", flush=True)
            time.sleep(20)
            return 0
        finally:
            print("in order", flush=True)

sys.exit(main([]))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_that_falls_into_a_destructor_still_ends_the_program(number, code):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started these tests ignores it, and so does what they start")
    done = run(PROGRAM.format(number=int(number)))
    assert done.returncode == code
    assert done.stdout.splitlines() == ["lost for now", "in order"]
    assert done.stderr == ""


def test_other_errors_of_destructors_are_reported_as_ever():
    program = """
from mlx_redrafter.ui.ending import lost_ends_repeated
class Fails:
    def __del__(self):
        raise SystemExit(1)
with lost_ends_repeated():
    Fails()
print("goes on")
"""
    done = run(program)
    assert done.returncode == 0
    assert done.stdout == "goes on\n"
    assert "SystemExit" in done.stderr
