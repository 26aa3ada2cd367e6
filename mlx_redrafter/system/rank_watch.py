"""Watching over the processes of a distributed run: none waits for ever for one that is gone.

A rank that waits in a collective cannot look around. So each has a thread with a connection to
rank 0, over which it says twice a second how many exchanges it has come to: a connection that
closes names the rank that is gone, and a count that stays after the others' names the one that
hangs.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .ranks import Ranks

PULSE_SECONDS = 0.5
# A rank that has not come as far as another for so long hangs: no step and no prompt's piece that
# all ranks compute together takes one of them that much longer.
HANG_SECONDS = 60.0
CONNECT_SECONDS = 20.0
_PULSE = struct.Struct("<q")
_LEAVES = -1

Fail = Callable[[str], None]


class RankWatch:
    """Watches the other ranks from a thread, until :meth:`stop`.

    Args:
        ranks: All processes.
        host: Address of rank 0, at which the others reach it.
        fail: Called once, with a sentence, when a rank is gone or hangs; has to end the process,
            whose main thread may be stuck.
        hang_seconds: See ``HANG_SECONDS``.
    """

    def __init__(self, ranks: Ranks, host: str, fail: Fail, hang_seconds: float = HANG_SECONDS):
        self._ranks, self._fail, self._hang_seconds = ranks, fail, hang_seconds
        self._stopped = threading.Event()
        self._links = self._connect(host)
        self._seen = {rank: (0, time.monotonic()) for rank in self._links}
        for rank, link in self._links.items():
            threading.Thread(target=self._listen, args=(rank, link), daemon=True).start()
        threading.Thread(target=self._pulse, daemon=True).start()

    def stop(self) -> None:
        """Say goodbye: this rank is about to end, and the others need not wonder."""
        self._stopped.set()
        for link in self._links.values():
            self._send(link, _LEAVES)
            link.close()

    def _connect(self, host: str) -> dict[int, socket.socket]:
        """Rank 0's connections to all others, or another's to rank 0."""
        if not self._ranks.leads:
            port = int(self._ranks.share(b"0"))
            link = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
            link.settimeout(None)
            self._send(link, self._ranks.rank)
            return {0: link}
        with socket.create_server((host, 0), backlog=self._ranks.size) as server:
            server.settimeout(CONNECT_SECONDS)
            self._ranks.share(str(server.getsockname()[1]).encode())
            links = {}
            for _ in range(self._ranks.size - 1):
                link, _address = server.accept()
                link.settimeout(None)
                links[self._receive(link)] = link
        return links

    def _pulse(self) -> None:
        while not self._stopped.wait(PULSE_SECONDS):
            own = self._ranks.exchanges
            for link in list(self._links.values()):
                self._send(link, own)
            now = time.monotonic()
            furthest = max([own, *(count for count, _ in self._seen.values())])
            for rank, (count, since) in list(self._seen.items()):
                if count < furthest and now - since > self._hang_seconds:
                    self._end(
                        f"Rank {rank} has not answered for {self._hang_seconds:.0f} seconds while "
                        "others wait for it: look at its machine, and start all of them again."
                    )

    def _listen(self, rank: int, link: socket.socket) -> None:
        while True:
            try:
                count = self._receive(link)
            except OSError:
                self._end(f"Rank {rank} has ended: start all of them again.")
                return
            if count == _LEAVES:
                self._seen.pop(rank, None)
                return
            if count != self._seen[rank][0]:
                self._seen[rank] = count, time.monotonic()

    def _end(self, sentence: str) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._fail(sentence)

    @staticmethod
    def _send(link: socket.socket, number: int) -> None:
        try:
            link.sendall(_PULSE.pack(number))
        except OSError:
            return  # who listens notices

    @staticmethod
    def _receive(link: socket.socket) -> int:
        data = b""
        while len(data) < _PULSE.size:
            piece = link.recv(_PULSE.size - len(data))
            if not piece:
                raise ConnectionError("closed")
            data += piece
        number: int = _PULSE.unpack(data)[0]
        return number


def watch(ranks: Ranks) -> RankWatch | None:
    """Watch the other ranks until the program ends; None where rank 0's address is not known.

    Only the ring backend's host file says where rank 0 is; the others have watches of their own.
    """
    host = ring_host()
    if host is None:
        return None
    made = RankWatch(ranks, host, _leave)
    atexit.register(made.stop)
    return made


def _leave(sentence: str) -> None:
    """End the process at once: its main thread may be stuck, and cannot be told."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
    os._exit(2)


def ring_host() -> str | None:
    """Address of rank 0 by the host file that ``mlx.launch`` hands out; None without one."""
    try:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text("utf-8"))
        return str(hosts[0][0]).rsplit(":", 1)[0]
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return None
