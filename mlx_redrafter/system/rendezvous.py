"""Where the processes of a distributed run meet before mlx connects them, and can be missed.

mlx's ring waits for ever, and deaf to everything, for a process that never comes. So all first
connect as the ring does, each to the next one, a thousand ports beside the ring's own, and go on
once everybody is there. Through the same connections they watch over each other afterwards. No
other machine than its neighbours need be within reach of one, as in a ring of Thunderbolt cables.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

MEET_SECONDS = 60.0
_BESIDE = 1000
_LAST_PORT = 65535
_RETRY_SECONDS = 0.1
# Those that are not next to the one that is missing hear of it after it was missed.
_HEARSAY_SECONDS = 5.0
# A rank says who it is as soon as it is connected; whoever is silent for so long is none.
_HELLO_SECONDS = 2.0
Address = tuple[str, int]


@dataclass
class Peer:
    """A neighbour in the ring.

    Attributes:
        rank: Its number.
        link: The connection.
        heard: When it last spoke.
    """

    rank: int
    link: socket.socket
    heard: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._file = self.link.makefile("rb")

    def send(self, **message: Any) -> None:
        """Say something; whoever listens notices where nobody does."""
        with suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            OSError: If it is gone, the connection's time is up, or what it says is no message: who
                speaks otherwise is no rank.
        """
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise ConnectionError("no message")
        self.heard = time.monotonic()
        return said


def meet(seconds: float = MEET_SECONDS) -> list[Peer] | None:
    """Wait until all processes of a run are there.

    Args:
        seconds: How long to wait.

    Returns:
        The next rank and the one before; None where ``mlx.launch`` started no ring of several.

    Raises:
        RedrafterError: If one does not come.
    """
    hosts = ring_hosts()
    if hosts is None or len(hosts) < 2:
        return None
    return meet_at(int(os.environ.get("MLX_RANK", "0")), hosts, seconds)


def meet_at(rank: int, hosts: Sequence[Address], seconds: float) -> list[Peer]:
    """What :func:`meet` does, as this rank among those that listen at ``hosts``."""
    end = time.monotonic() + seconds
    following, before = (rank + 1) % len(hosts), (rank - 1) % len(hosts)
    peers: list[Peer] = []
    try:
        with _listening(hosts[rank]) as server:
            hello = _hello(rank, len(hosts))
            peers.append(Peer(following, _reached(following, hosts[following], hello, end)))
            hello = _hello(before, len(hosts))
            peers.append(Peer(before, _welcomed(server, before, hello, end)))
        _count(rank, peers, end + _HEARSAY_SECONDS)
    except RedrafterError as error:
        for peer in peers:
            peer.send(failed=str(error))
        raise
    return peers


def ring_hosts() -> list[Address] | None:
    """Where each rank listens for this, by the host file of ``mlx.launch``; None without one."""
    try:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text("utf-8"))
        parted = [str(addresses[0]).rsplit(":", 1) for addresses in hosts]
        return [(host, _beside(int(port))) for host, port in parted]
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return None


def is_one() -> bool:
    """Whether ``mlx.launch`` started one process, whose host file it leaves empty."""
    try:
        return not Path(os.environ["MLX_HOSTFILE"]).read_text("utf-8").strip()
    except (KeyError, OSError, ValueError):
        return False


def _beside(port: int) -> int:
    return port + _BESIDE if port + _BESIDE <= _LAST_PORT else port - _BESIDE


def _listening(address: Address) -> socket.socket:
    try:
        return socket.create_server(address)
    except OSError as error:
        raise RedrafterError(
            f"{address[0]}:{address[1]}, where the processes of this run are to meet, cannot be "
            f"listened at ({error.strerror or error}): start mlx.launch with another "
            "--starting-port."
        ) from error


def _hello(rank: int, size: int) -> bytes:
    """What a rank of a run of so many says first: others may connect to its port as well."""
    return f"mlx_redrafter rank {rank} of {size}\n".encode()


def _reached(rank: int, address: Address, hello: bytes, end: float) -> socket.socket:
    """A connection to a rank, which may not be there yet; ``hello`` was said to it."""
    while True:
        try:
            return _connected(address, hello, end)
        except OSError as error:
            if time.monotonic() >= end:
                raise RedrafterError(
                    f"Rank {rank} cannot be reached at {address[0]}:{address[1]} "
                    f"({error.strerror or error}): look at its machine and the network."
                ) from error
            time.sleep(_RETRY_SECONDS)


def _connected(address: Address, hello: bytes, end: float) -> socket.socket:
    link = socket.create_connection(address, timeout=max(0.01, end - time.monotonic()))
    try:
        link.sendall(hello)
    except OSError:
        link.close()
        raise
    return link


def _welcomed(server: socket.socket, rank: int, hello: bytes, end: float) -> socket.socket:
    """The connection of the rank before this one; strangers' are closed."""
    while time.monotonic() < end:
        server.settimeout(max(0.01, end - time.monotonic()))
        with suppress(OSError):  # its time is up, or somebody went away before
            link = server.accept()[0]
            if _says(link, hello, min(end, time.monotonic() + _HELLO_SECONDS)):
                return link
            link.close()
    raise RedrafterError(f"Rank {rank} has not come: look at its machine and the network.")


def _says(link: socket.socket, hello: bytes, end: float) -> bool:
    """Whether these are the first words of a connection, and come in time."""
    said = b""
    with suppress(OSError):
        while said != hello and hello.startswith(said):
            link.settimeout(max(0.01, end - time.monotonic()))
            piece = link.recv(len(hello) - len(said))
            if not piece or time.monotonic() >= end:
                break
            said += piece
    return said == hello


def _count(rank: int, peers: Sequence[Peer], end: float) -> None:
    """Go round the ring twice: that all are there, and that all know it.

    Raises:
        RedrafterError: If a rank is missing.
    """
    following, before = peers
    for peer in peers:
        peer.link.settimeout(max(0.01, end - time.monotonic()))
    for _ in range(2):
        if rank == 0:
            following.send(all_here=True)
        try:
            said = before.receive()
        except OSError:
            said = {}
        if said.get("all_here") is not True:
            ended = f"Rank {before.rank} has ended: start all of them again."
            raise RedrafterError(str(said.get("failed", ended)))
        if rank != 0:
            following.send(all_here=True)
    for peer in peers:
        peer.link.settimeout(None)
