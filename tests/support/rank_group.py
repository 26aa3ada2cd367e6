"""Groups of real processes over mlx's ring backend, started as ``mlx.launch`` starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
MLX_LINE = re.compile(r"\[ring\].*|[\s\d]*")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Group:
    """Processes of one run, each with its output in a file; a context manager that leaves none.

    Args:
        home: Their home, and where they start.
        command: Python's arguments, the same for all.
        ranks: How many.
        each: Further arguments of each.
    """

    def __init__(
        self, home: Path, ranks: int, *command: str | Path, each: list[list[str]] | None = None
    ):
        home.mkdir(exist_ok=True)
        self.home = home
        hosts = home / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
        each = [[]] * ranks if each is None else each
        commands = [[*map(str, command), *own] for own in each]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLX_")}
        self.processes = []
        for rank, own in enumerate(commands):
            env = {
                **kept, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), "HOME": str(home),
                "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200",
            }  # fmt: skip
            with self._file(rank, "out").open("w") as out, self._file(rank, "err").open("w") as err:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *own], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                        env=env, cwd=home,
                    )
                )  # fmt: skip

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _file(self, rank: int, name: str) -> Path:
        return self.home / f"rank-{rank}.{name}"

    def out(self, rank: int) -> str:
        """What a rank has printed so far."""
        return self._file(rank, "out").read_text()

    def err(self, rank: int) -> str:
        """What a rank has said on stderr so far, but for mlx's own lines.

        Its threads write them in pieces, so that one may stand in the middle of another.
        """
        lines = self._file(rank, "err").read_text().splitlines()
        return "\n".join(line for line in lines if not MLX_LINE.fullmatch(line))

    def wait(self, seconds: float = 200.0) -> list[int]:
        """Exit codes, once all have ended."""
        end = time.monotonic() + seconds
        return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]

    def wait_for(self, rank: int, text: str, seconds: float = 120.0) -> None:
        """Until a rank has printed something."""
        end = time.monotonic() + seconds
        while text not in self.out(rank) + self.err(rank):
            assert self.processes[rank].poll() is None, self.err(rank)
            assert time.monotonic() < end, (self.out(rank), self.err(rank))
            time.sleep(0.05)

    def interrupt(self, *ranks: int) -> None:
        """Ctrl-C."""
        for rank in ranks:
            self.processes[rank].send_signal(signal.SIGINT)
