"""A shell in a pseudo-terminal, for tests of what a shell does with a program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def interactive_shell(home: Path) -> Any:
    """A bash with job control in the repository's root, at its first prompt, "shell> "."""
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn(
        "/bin/bash", ["--norc", "--noediting", "-i"], encoding="utf-8", timeout=60,
        dimensions=(30, 100), cwd=str(ROOT),
        env={**os.environ, "HOME": str(home), "PS1": "shell> ", "TERM": "xterm-256color"},
    )  # fmt: skip
    shell.expect_exact("shell> ")
    return shell
