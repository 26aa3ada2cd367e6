"""Watching over the processes of a distributed run: none waits for ever for one that is gone.

A rank that waits in a collective cannot look around. So each has a thread that says twice a second,
over its connection with rank 0, how far it has come. A connection that closes names the
rank that is gone, silence the one that has stopped, and a count that stays behind the others' the
one that hangs. Rank 0, which hears of all, tells the others what it found.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache

from .ranks import Ranks, join
from .rendezvous import Peer, meet

PULSE_SECONDS = 0.5
# A rank that has not come as far as another for so long hangs: no step and no prompt's piece that
# all ranks compute together takes one of them that much longer.
HANG_SECONDS = 60.0
# A process that lives says something twice a second, whatever its main thread does.
SILENT_SECONDS = 15.0
# One that ends where others still need it is missed after so long.
MISSED_SECONDS = 1.0
AGAIN = "start all of them again."

Fail = Callable[[str], None]


class RankWatch:
    """Watches the other ranks from a thread, until :meth:`stop`.

    Args:
        ranks: All processes.
        peers: From ``meet``.
        fail: Called once, with a sentence, when a rank is gone or hangs; has to end the process,
            whose main thread may be stuck.
        hang_seconds: See ``HANG_SECONDS``.
        silent_seconds: See ``SILENT_SECONDS``.
    """

    def __init__(
        self,
        ranks: Ranks,
        peers: Mapping[int, Peer],
        fail: Fail,
        hang_seconds: float = HANG_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ):
        self._ranks, self._fail = ranks, fail
        self._hang_seconds, self._silent_seconds = hang_seconds, silent_seconds
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._peers = dict(peers)
        for rank, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(rank, peer), daemon=True).start()
        threading.Thread(target=self._pulse, daemon=True).start()

    def stop(self) -> None:
        """Say goodbye: this rank is about to end, having come as far as it says."""
        self._stopped.set()
        for peer in self._peers.values():
            peer.send(at=self._ranks.progress, leaves=True)
            with suppress(OSError):
                peer.link.shutdown(socket.SHUT_WR)

    def _pulse(self) -> None:
        while not self._stopped.wait(PULSE_SECONDS):
            own = self._ranks.progress
            for peer in self._peers.values():
                peer.send(at=own)
            sentence = self._fault(time.monotonic())
            if sentence is not None:
                self._end(sentence)

    def _fault(self, now: float) -> str | None:
        """What is wrong with another rank, if anything is."""
        own = self._ranks.progress
        furthest = max([own, *(peer.progress for peer in self._peers.values())])
        for rank, peer in list(self._peers.items()):
            behind = peer.progress < furthest
            if peer.left:
                if behind and now - max(peer.heard, peer.since) > MISSED_SECONDS:
                    return f"Rank {rank} has ended while others still need it: {AGAIN}"
            elif now - peer.heard > self._silent_seconds:
                return (
                    f"Rank {rank} has not been heard of for {self._silent_seconds:.0f} seconds: "
                    f"look at its machine and the network, and {AGAIN}"
                )
            elif behind and now - peer.since > self._hang_seconds:
                return (
                    f"Rank {rank} has not answered for {self._hang_seconds:.0f} seconds while "
                    f"others wait for it: look at its machine, and {AGAIN}"
                )
        return None

    def _listen(self, rank: int, peer: Peer) -> None:
        while True:
            try:
                said = peer.receive()
            except (OSError, ValueError):
                self._end(f"Rank {rank} has ended: {AGAIN}")
                return
            if "failed" in said:
                self._end(said["failed"])
                return
            peer.heard = time.monotonic()
            if said["at"] != peer.progress:
                peer.progress, peer.since = said["at"], peer.heard
            if said.get("leaves"):
                peer.left = True
                return

    def _end(self, sentence: str) -> None:
        with self._ending:
            if self._stopped.is_set():
                return
            self._stopped.set()
        if self._ranks.leads:
            for peer in self._peers.values():
                peer.send(failed=sentence)
        self._fail(sentence)


@cache
def current_ranks() -> Ranks | None:
    """The processes that this one belongs to, watched from here on; None where it is alone.

    They are the process's own, as mlx's group is: every call returns the same. Only the ring
    backend's host file says where rank 0 is; other backends have watches of their own.

    Raises:
        RedrafterError: If mlx.launch started several, and they cannot reach each other.
    """
    peers = meet()
    ranks = join()
    if ranks is not None and peers is not None:
        watch = RankWatch(ranks, peers, _leave)
        atexit.register(watch.stop)
    return ranks


def _leave(sentence: str) -> None:
    """End the process at once: its main thread may be stuck, and cannot be told."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
    os._exit(2)
