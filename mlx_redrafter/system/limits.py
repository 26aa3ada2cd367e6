"""What this process may use of the machine: cores and memory, of which a container gets less."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path("/")
Limit = TypeVar("Limit", int, float)


@dataclass(frozen=True)
class ContainerLimits:
    """What Linux's control groups allow a process; None for no limit.

    Attributes:
        cores: Seconds of processor time a second.
        memory: Bytes.
    """

    cores: float | None = None
    memory: int | None = None

    @classmethod
    def read(cls, root: Path = ROOT) -> ContainerLimits:
        """The limits of this process, the smallest of its groups and those above.

        Args:
            root: Where /proc and /sys are.
        """
        cores = [*_limits(root, "", _cores), *_limits(root, "cpu", _cores_of_old)]
        memory = [*_limits(root, "", _memory), *_limits(root, "memory", _memory_of_old)]
        return cls(min(cores, default=None), min(memory, default=None))


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy, at least one: of a share of a core, all of it."""
    if not sys.platform.startswith("linux"):
        return os.cpu_count() or 1
    quota = ContainerLimits.read(root).cores
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def usable_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may use: the machine's, or a container's; None if nobody says."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = ContainerLimits.read(root).memory
    return physical if limit is None else min(physical, limit)


def _limits(root: Path, controller: str, read: Callable[[Path], Limit | None]) -> Iterator[Limit]:
    """The limits of a controller's groups that have one; "" for those that all controllers share.

    Whatever is not there, or not to be read, limits nothing.
    """
    for directory in _groups(root, controller):
        with suppress(OSError, ValueError, ZeroDivisionError):
            limit = read(directory)
            if limit is not None:
                yield limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of the groups that this process is in, up to the mounted root.

    Inside a container the path may be the host's, which is not there: what is mounted is its own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        for mounted in dict.fromkeys((names or "unified", controller)):
            top = root / "sys/fs/cgroup" / mounted
            group = top / path.strip("/")
            yield from [above for above in (group, *group.parents) if above.is_relative_to(top)]


def _cores(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text("utf-8").split()
    return None if quota == "max" else int(quota) / int(period)


def _cores_of_old(group: Path) -> float | None:
    """The same in version 1 of control groups."""
    quota = int((group / "cpu.cfs_quota_us").read_text("utf-8"))
    return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text("utf-8"))


def _memory(group: Path) -> int | None:
    limit = (group / "memory.max").read_text("utf-8").strip()
    return None if limit == "max" else int(limit)


def _memory_of_old(group: Path) -> int | None:
    """The same in version 1, where no limit is a number beyond any machine's memory."""
    return int((group / "memory.limit_in_bytes").read_text("utf-8"))
