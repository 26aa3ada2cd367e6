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
    return _told("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names ("avx2"); empty where it does not say."""
    return frozenset(_told("flags").split())


def _told(field: str) -> str:
    """What /proc/cpuinfo says of the first core; "" where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    values = (line.split(":", 1) for line in lines)
    return next((v[1].strip() for v in values if len(v) == 2 and v[0].strip() == field), "")


def output_of(command: list[str]) -> str | None:
    """What a command prints, None where it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
