from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlx_redrafter.system.limits import ContainerLimits, usable_cores, usable_memory

GROUPS = "sys/fs/cgroup"


def container(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system in which a process is in these groups, and they have these files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / GROUPS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, None, id="a container"),
        pytest.param(
            "0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None, id="no limits"
        ),
        pytest.param("0::/\n", {"memory.max": "2147483648\n"}, None, 2**31, id="memory"),
        pytest.param(
            "0::/user/job\n",
            {
                "user/job/cpu.max": "max 100000",
                "user/cpu.max": "50000 100000",
                "memory.max": "4096",
                "user/job/memory.max": "8192",
            },
            0.5,
            4096,
            id="the smallest of those above",
        ),
        pytest.param(
            "0::/host/path\n", {"cpu.max": "300000 100000"}, 3.0, None, id="the path is the host's"
        ),
        pytest.param(
            "1:name=systemd:/\n0::/\n",
            {"unified/cpu.max": "100000 50000"},
            2.0,
            None,
            id="both versions",
        ),
        pytest.param(
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "memory/a/memory.limit_in_bytes": "1048576",
            },
            2.5,
            2**20,
            id="version 1",
        ),
        pytest.param(
            "3:cpuacct,cpu:/a\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            1.0,
            None,
            id="under a controller's own name",
        ),
        pytest.param(
            "3:cpu:/\n4:memory:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            9223372036854771712,
            id="version 1 without limits",
        ),
        pytest.param(
            "0::/\n", {"cpu.max": "lots\n", "memory.max": "\n"}, None, None, id="nonsense"
        ),
        pytest.param("0::/\n", {"cpu.max": "100000 0\n"}, None, None, id="no period"),
        pytest.param("nonsense\n\n0\n", {}, None, None, id="no groups"),
    ],
)
def test_the_limits_of_control_groups(
    groups: str, files: dict[str, str], cores: float | None, memory: int | None, tmp_path: Path
) -> None:
    read = ContainerLimits.read(container(tmp_path, groups, files))
    assert (read.cores, read.memory) == (cores, memory)


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert ContainerLimits.read(tmp_path) == ContainerLimits()


@pytest.mark.parametrize(
    ("quota", "cores"), [("20000", 1), ("150000", 2), ("max", 6), ("900000", 6)]
)
def test_a_share_of_a_core_is_one_and_no_more_than_are_open(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(6), raising=False)
    root = container(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert usable_cores(root) == cores


def test_memory_is_the_machine_s_or_the_container_s(tmp_path: Path) -> None:
    whole = usable_memory(tmp_path)
    assert whole is not None
    assert whole > 2**28
    limited = container(tmp_path, "0::/\n", {"memory.max": str(whole // 3)})
    assert usable_memory(limited) == whole // 3
    (limited / GROUPS / "memory.max").write_text(str(2 * whole))
    assert usable_memory(limited) == whole
