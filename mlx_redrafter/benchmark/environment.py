"""Where a measurement was made: what anybody needs to judge it, or to repeat it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__, blas_loaded
from ..system.blas import is_loaded, kernels
from ..system.limits import usable_cores, usable_memory
from ..system.machine import output_of, processor_name

PROGRAM = "python -m mlx_redrafter.benchmark"
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Environment:
    """The circumstances of a measurement.

    Attributes:
        command: The command line.
        date: Local time with its offset, ISO 8601.
        versions: Of python, mlx, mlx_lm and mlx_redrafter.
        commit: Of the source tree this package runs from, "-modified" after it where files differ
            from it; None outside of a git checkout.
        system: Operating system and its release.
        architecture: Of the processor.
        processor: Its name.
        cores: Those that this process may use, logical ones.
        memory_bytes: What it may use, None where that cannot be read.
        device: Where mlx computes.
        device_info: What mlx knows about it.
        blas: What multiplies float32 matrices on the CPU.
        power_source: Mains or battery, None where it cannot be read.
    """

    command: str
    date: str
    versions: dict[str, str]
    commit: str | None
    system: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int | None
    device: str
    device_info: dict[str, Any]
    blas: str
    power_source: str | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def facts(self) -> dict[str, str]:
        """All that people are shown, in words, by what it is about."""
        commit = f", commit {self.commit}" if self.commit else ""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else "not known"
        return {
            "command": self.command,
            "date": self.date,
            "versions": ", ".join(f"{k} {v}" for k, v in self.versions.items()) + commit,
            "system": f"{self.system}, {self.architecture}",
            "processor": f"{self.processor}, {self.cores} cores",
            "memory": memory,
            "device": f"{self.device}; BLAS: {self.blas}",
            "power": self.power_source or "not known",
        }


def environment(arguments: Sequence[str], program: str = PROGRAM) -> Environment:
    """The circumstances as they are now.

    Args:
        arguments: The command line after ``program``.
        program: How it is run.
    """
    device = mx.default_device()
    return Environment(
        command=f"{program} {shlex.join(arguments)}".rstrip(),
        date=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "mlx": version("mlx"),
            "mlx_lm": version("mlx-lm"),
            "mlx_redrafter": __version__,
        },
        commit=commit_of(PACKAGE),
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=processor_name(),
        cores=usable_cores(),
        memory_bytes=usable_memory(),
        device=str(device),
        device_info=dict(mx.device_info(device)),
        blas=blas_words(),
        power_source=power_source(),
    )


def commit_of(package: Path) -> str | None:
    """The commit of the git checkout that tracks this package, None where there is none."""
    git = ["git", "-C", str(package)]
    # A package installed inside of somebody else's checkout is not tracked there.
    if output_of([*git, "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    commit = output_of([*git, "rev-parse", "HEAD"])
    changes = output_of([*git, "status", "--porcelain", "--untracked-files=no", "--", str(package)])
    return f"{commit}-modified" if commit and changes else commit


def blas_words() -> str:
    """What multiplies float32 matrices on the CPU."""
    if platform.system() == "Darwin":
        return "Accelerate"
    if not (blas_loaded or is_loaded()):
        return "the one in mlx's wheel"
    made_for = kernels()
    return f"OpenBLAS ({made_for})" if made_for else "OpenBLAS"


def power_source() -> str | None:
    """Mains or battery, as the system tells it."""
    if platform.system() == "Darwin":
        return mac_power(output_of(["pmset", "-g", "batt"]) or "")
    return linux_power(Path("/sys/class/power_supply"))


def mac_power(told: str) -> str | None:
    """The power source in what ``pmset -g batt`` tells: "Now drawing from 'AC Power'", ..."""
    first = told.splitlines()[0] if told.strip() else ""
    quoted = first.split("'")
    return quoted[1] if len(quoted) >= 3 else None


def linux_power(supplies: Path) -> str | None:
    """The power source as Linux's power_supply class has it."""
    online: list[bool] = []
    batteries: list[str] = []
    for supply in sorted(supplies.glob("*")):
        kind = _line(supply / "type")
        if kind in ("Mains", "USB"):
            online.append(_line(supply / "online") == "1")
        elif kind == "Battery":
            batteries.append(_line(supply / "status"))
    if any(online):
        return "mains"
    if batteries:
        return f"battery, {batteries[0].lower()}" if batteries[0] else "battery"
    return None


def _line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
