"""What a signal leaves of the terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle
from shells import interactive_shell

pexpect = pytest.importorskip("pexpect")
ROOT = Path(__file__).resolve().parents[2]


def started(bundle: Path, home: Path) -> Any:
    """A chat at a terminal that waits for a question."""
    child = pexpect.spawn(
        sys.executable,
        [str(ROOT / "chat.py"), "--model", str(bundle), "--max-tokens", "15000"],
        env={**os.environ, "HOME": str(home), "TERM": "xterm-256color"},
        encoding="utf-8", dimensions=(30, 100), timeout=60,
    )  # fmt: skip
    child.logfile_read = io.StringIO()
    child.delaybeforesend = 0.3
    child.expect("Ctrl-D leaves")
    child.expect(r"> \x1b\[0m")
    return child


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_leaves_the_terminal_as_it_was(
    tmp_path: Path, answering: bool, ends: signal.Signals
) -> None:
    if signal.getsignal(ends) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the chat")
    child = started(make_bundle(tmp_path / "tiny", context=20_000), tmp_path)
    if answering:
        child.sendline("hello there")
        child.expect("context")
    child.kill(ends)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 128 + ends
    drawn = child.logfile_read.getvalue()
    assert drawn.rfind("\x1b[?25h") >= drawn.rfind("\x1b[?25l")  # the cursor
    assert drawn.rfind("\x1b[?2004l") >= drawn.rfind("\x1b[?2004h")  # bracketed paste
    assert "Traceback" not in drawn


@pytest.mark.parametrize("answering", [False, True])
def test_a_terminal_that_is_gone_ends_the_chat_as_its_signal_does(
    tmp_path: Path, answering: bool
) -> None:
    """Nothing can be written to it any more, which is no error of the person's."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the chat")
    child = started(make_bundle(tmp_path / "tiny", context=20_000), tmp_path)
    if answering:
        child.sendline("hello there")
        child.expect("context")
    child.ptyproc.fileobj.close()
    status = os.waitpid(child.pid, 0)[1]
    child.ptyproc.terminated = child.terminated = child.closed = True
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


def test_in_the_background_the_chat_answers_instead_of_being_stopped(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    shell = interactive_shell(tmp_path)
    shell.sendline(f"{sys.executable} chat.py --model {bundle} --no-draft -m 5 -p hello &")
    shell.expect_exact("shell> ")
    shell.sendline("wait; echo over")
    assert shell.expect(["plain decoding", "Stopped"]) == 0
    shell.expect("over\r")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()
