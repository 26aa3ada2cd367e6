"""Where the processes of a distributed run meet before mlx connects them, and can be missed.

mlx's ring waits for ever, and deaf to everything, for a process that never comes. So all first
connect to rank 0, one port below its own of the ring, and go on once everybody is there. Through
the same connections they watch over each other afterwards.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

MEET_SECONDS = 60.0
_RETRY_SECONDS = 0.1
_RETRY_PORT = "start mlx.launch with another --starting-port."


@dataclass
class Peer:
    """Another rank, and what is known of it.

    Attributes:
        link: The connection.
        progress: How far it had come when it last spoke.
        since: When it came that far.
        heard: When it last spoke.
        left: Whether it has said goodbye.
    """

    link: socket.socket
    progress: int = 0
    since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    left: bool = False

    def __post_init__(self) -> None:
        self._file = self.link.makefile("rb")

    def send(self, **message: Any) -> None:
        """Say something; whoever listens notices where nobody does."""
        with suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            OSError: If it is gone.
        """
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        said: dict[str, Any] = json.loads(line)
        return said


def meet(seconds: float = MEET_SECONDS) -> dict[int, Peer] | None:
    """Wait until all processes of a run are there.

    Args:
        seconds: How long to wait.

    Returns:
        Rank 0's connections to all others, or another's to rank 0; None where ``mlx.launch``
        started no ring of several.

    Raises:
        RedrafterError: If one does not come.
    """
    hosts = ring_hosts()
    if hosts is None or len(hosts) < 2:
        return None
    rank, (host, port) = int(os.environ.get("MLX_RANK", "0")), hosts[0]
    address, end = (host, port - 1), time.monotonic() + seconds
    if rank == 0:
        return _welcome(address, len(hosts), end)
    peer = Peer(_reached(address, end))
    peer.send(rank=rank)
    try:
        said = peer.receive()
    except OSError:
        said = {"failed": "Rank 0 has ended: start all of them again."}
    if "failed" in said:
        raise RedrafterError(said["failed"])
    return {0: peer}


def ring_hosts() -> list[tuple[str, int]] | None:
    """The first address of each rank by the host file that ``mlx.launch`` hands out; or None."""
    try:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text("utf-8"))
        parted = [str(addresses[0]).rsplit(":", 1) for addresses in hosts]
        return [(host, int(port)) for host, port in parted]
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return None


def _welcome(address: tuple[str, int], size: int, end: float) -> dict[int, Peer]:
    peers: dict[int, Peer] = {}
    try:
        server = socket.create_server(address, backlog=size)
    except OSError as error:
        raise RedrafterError(
            f"{address[0]}:{address[1]}, where the processes of this run are to meet, cannot be "
            f"listened at ({error.strerror or error}): {_RETRY_PORT}"
        ) from error
    with server:
        while len(peers) < size - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                link, _address = server.accept()
            except TimeoutError:
                missing = ", ".join(str(rank) for rank in range(1, size) if rank not in peers)
                sentence = f"Rank {missing} has not come: look at its machine and its host's name."
                for peer in peers.values():
                    peer.send(failed=sentence)
                raise RedrafterError(sentence) from None
            link.settimeout(None)
            peer = Peer(link)
            with suppress(OSError, ValueError, KeyError):  # a stranger that knocked
                peers[int(peer.receive()["rank"])] = peer
    for peer in peers.values():
        peer.send(at=0)
    return peers


def _reached(address: tuple[str, int], end: float) -> socket.socket:
    while True:
        try:
            link = socket.create_connection(address, timeout=max(0.01, end - time.monotonic()))
        except OSError as error:
            if time.monotonic() >= end:
                raise RedrafterError(
                    f"Rank 0 cannot be reached at {address[0]}:{address[1]} "
                    f"({error.strerror or error}): look at its machine and the network."
                ) from error
            time.sleep(_RETRY_SECONDS)
        else:
            link.settimeout(None)
            return link
