"""What a signal leaves of the terminal."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest
from bundles import make_bundle

pexpect = pytest.importorskip("pexpect")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_leaves_the_terminal_as_it_was(
    tmp_path: Path, answering: bool, ends: signal.Signals
) -> None:
    if signal.getsignal(ends) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the chat")
    bundle = make_bundle(tmp_path / "tiny", context=20_000)
    child = pexpect.spawn(
        sys.executable,
        [str(ROOT / "chat.py"), "--model", str(bundle), "--max-tokens", "15000"],
        env={**os.environ, "HOME": str(tmp_path), "TERM": "xterm-256color"},
        encoding="utf-8", dimensions=(30, 100), timeout=60,
    )  # fmt: skip
    child.logfile_read = io.StringIO()
    child.delaybeforesend = 0.3
    child.expect("Ctrl-D leaves")
    child.expect(r"> \x1b\[0m")
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
