"""Watching over the processes of a distributed run: none waits for ever for one that is gone.

A rank that waits in a collective cannot look around. So each has threads that talk with its
neighbours in the ring, and say twice a second how far it has come, and what it has heard of the
others. A connection that closes names the rank that is gone, silence the one that has stopped, and
a count that stays behind the others' the one that hangs. Who finds something tells everybody.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from .ranks import Ranks, join
from .rendezvous import Peer, meet

log = logging.getLogger("mlx_redrafter")
PULSE_SECONDS = 0.5
# A rank that others wait for so long hangs: no step and no prompt's piece that all ranks compute
# together takes one of them that much longer. Before files are fetched and read, nobody waits.
HANG_SECONDS = 60.0
# A process that lives says something twice a second, whatever its main thread does.
SILENT_SECONDS = 15.0
# One that ends where others still need it is missed after so long.
MISSED_SECONDS = 1.0
AGAIN = "start all of them again."

Fail = Callable[[str], None]


@dataclass
class _Seen:
    """What is known of another rank.

    Attributes:
        progress: How far it had come.
        awaited: Since when others are known to wait for it; None where nobody is. However long it
            had nothing to do before is not held against it.
        left: Whether it has said goodbye.
    """

    progress: int = 0
    awaited: float | None = None
    left: bool = False


class RankWatch:
    """Watches the other ranks from threads, until :meth:`stop`.

    Args:
        ranks: All processes.
        peers: The neighbours, from ``meet``.
        fail: Called once, with a sentence, when a rank is gone or hangs; has to end the process,
            whose main thread may be stuck.
        hang_seconds: See ``HANG_SECONDS``.
        silent_seconds: See ``SILENT_SECONDS``.
    """

    def __init__(
        self,
        ranks: Ranks,
        peers: Sequence[Peer],
        fail: Fail,
        hang_seconds: float = HANG_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ):
        self._ranks, self._peers, self._fail = ranks, list(peers), fail
        self._hang_seconds, self._silent_seconds = hang_seconds, silent_seconds
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._learned = threading.Condition()
        self._seen = {rank: _Seen() for rank in range(ranks.size) if rank != ranks.rank}
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._pulse, daemon=True).start()

    def stop(self) -> None:
        """Say goodbye: this rank is about to end, having come as far as it says."""
        self._stopped.set()
        self._tell(leaving=True)
        for peer in self._peers:
            with suppress(OSError):
                peer.link.shutdown(socket.SHUT_WR)

    def tell(self) -> None:
        """Say at once how far everybody has come."""
        self._tell()

    def wait_past(self, rank: int, progress: int) -> None:
        """Sleep until a rank has come further than this, or has left; then pass it on at once, for
        those who are not next to it."""
        seen = self._seen[rank]
        with self._learned:
            self._learned.wait_for(lambda: seen.progress > progress or seen.left)
        self._tell()

    def _tell(self, *, leaving: bool = False) -> None:
        """Say how far everybody has come, as far as that is known here."""
        known = [(rank, seen.progress, seen.left) for rank, seen in self._seen.items()]
        known.append((self._ranks.rank, self._ranks.progress, leaving))
        for peer in self._peers:
            peer.send(known=known)

    def _pulse(self) -> None:
        while not self._stopped.wait(PULSE_SECONDS):
            self._tell()
            sentence = self._fault(time.monotonic())
            if sentence is not None:
                self._end(sentence)

    def _fault(self, now: float) -> str | None:
        """What is wrong with another rank, if anything is."""
        for peer in self._peers:
            silent = now - peer.heard > self._silent_seconds
            if silent and not self._seen[peer.rank].left:
                return (
                    f"Rank {peer.rank} has not been heard of for {self._silent_seconds:.0f} "
                    f"seconds: look at its machine and the network, and {AGAIN}"
                )
        furthest = max([self._ranks.progress, *(seen.progress for seen in self._seen.values())])
        for rank, seen in self._seen.items():
            if seen.progress >= furthest:
                seen.awaited = None
                continue
            if seen.awaited is None:
                seen.awaited = now
            age = now - seen.awaited
            if seen.left and age > MISSED_SECONDS:
                return f"Rank {rank} has ended while others still need it: {AGAIN}"
            if not seen.left and age > self._hang_seconds:
                return (
                    f"Rank {rank} has not answered for {self._hang_seconds:.0f} seconds while "
                    f"others wait for it: look at its machine, and {AGAIN}"
                )
        return None

    def _listen(self, peer: Peer) -> None:
        failed = None
        while failed is None:
            try:
                said = peer.receive()
                failed = said.get("failed")
                for rank, progress, left in said["known"] if failed is None else ():
                    self._learn(rank, progress, left=left)
            # Whoever says something else than ranks do is as good as gone.
            except (OSError, ValueError, KeyError, TypeError):
                if self._seen[peer.rank].left:
                    return
                failed = f"Rank {peer.rank} has ended: {AGAIN}"
        self._end(str(failed))

    def _learn(self, rank: int, progress: int, *, left: bool) -> None:
        seen = self._seen.get(rank)
        if seen is not None and (progress > seen.progress or left > seen.left):
            seen.progress, seen.awaited = max(progress, seen.progress), None
            seen.left = left or seen.left
            with self._learned:
                self._learned.notify_all()

    def _end(self, sentence: str) -> None:
        with self._ending:
            if self._stopped.is_set():
                return
            self._stopped.set()
        for peer in self._peers:
            peer.send(failed=sentence)
        self._fail(sentence)


@cache
def current_ranks() -> Ranks | None:
    """The processes that this one belongs to, watched from here on; None where it is alone.

    They are the process's own, as mlx's group is: every call returns the same. Only the ring
    backend's host file says where ranks are; other backends have watches of their own.

    Raises:
        RedrafterError: If mlx.launch started several, and they cannot reach each other.
    """
    peers = meet()
    ranks = join()
    if ranks is not None and peers is not None:
        ranks.watch = watch = RankWatch(ranks, peers, leave)
        atexit.register(watch.stop)
    return ranks


def leave(sentence: str) -> None:
    """End the process at once: its main thread may be stuck, and cannot be told."""
    # On a line of its own: mlx's threads may be in the middle of one.
    log.critical("\n%s", sentence)
    os._exit(2)
