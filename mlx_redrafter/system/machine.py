"""What the system says of the machine it runs on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

PATIENCE = 10  # seconds that a command such as sysctl may take


def processor_name() -> str:
    """The processor's name as its maker has it."""
    if platform.system() == "Darwin":
        return output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def output_of(command: list[str]) -> str | None:
    """What a command prints, None where it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
