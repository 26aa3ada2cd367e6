"""The processes of a distributed run, as ``mlx.launch`` starts them, and what they agree on.

All ranks run the same steps. Time and chance are what could make them differ, so both come from
rank 0. The exchanges here are tiny and run on the CPU; a model's own run where mlx puts them.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..errors import RedrafterError
from .rendezvous import is_one

# What mlx raises when another process is gone, by backend.
_LOST = ("[ring]", "[jaccl]", "[mpi]", "[nccl]", "connection", "peer")
# Seconds in which the watch, if there is one, names the rank that is gone.
_NAMING_SECONDS = 5.0
# Short messages take one exchange: a size, and so many bytes of them.
_SIZE = struct.Struct("<q")
_INLINE = 248


class Watch(Protocol):
    """What looks after the ranks beside their exchanges, and can wake those that rest."""

    def tell(self) -> None:
        """Say at once how far everybody has come."""

    def wait_past(self, rank: int, progress: int) -> None:
        """Sleep until a rank has come further than this, or has left."""


class Ranks:
    """This process among the others.

    Args:
        group: mlx's group of all processes.

    Attributes:
        rank: Number of this process; 0 reads, prints and decides.
        size: Number of processes.
        progress: How far this process has come: it counts exchanges, and what is launched between
            them. A rank whose count stays behind the others' keeps them waiting.
        watch: Looks after the others; None where nobody does.
    """

    def __init__(self, group: mx.distributed.Group):
        self._group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.progress = 0
        self.watch: Watch | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mark(self) -> None:
        """Count something that every rank does between two exchanges."""
        self.progress += 1

    @property
    def can_rest(self) -> bool:
        """Whether others can be woken that do not wait in an exchange: one who waits there for
        long keeps a processor busy, since mlx's ring asks its sockets again and again."""
        return self.watch is not None

    def rest(self, progress: int) -> None:
        """Sleep until rank 0 rouses all; for the other ranks.

        Args:
            progress: How far rank 0 had come when it sent everybody to rest.
        """
        assert self.watch is not None
        self.watch.wait_past(0, progress)
        self.mark()

    def rouse(self) -> None:
        """End the rest of the others; for rank 0."""
        assert self.watch is not None
        self.mark()
        self.watch.tell()

    def gather(self, values: Sequence[float], *, patient: bool = False) -> list[list[float]]:
        """What every rank says, in the order of ranks.

        Args:
            values: Numbers of this rank, equally many on all; kept to float64's precision.
            patient: See :meth:`share`.

        Raises:
            RedrafterError: If another rank is gone.
        """
        rows = self._gathered(np.array(values, np.float64), hurries=self.leads or not patient)
        return [row.tolist() for row in rows]

    def share(self, data: bytes | bytearray | None, *, patient: bool = False) -> bytes:
        """What rank 0 says; what others give is not sent.

        Args:
            data: Of rank 0; others may give None.
            patient: Whether rank 0 may take as long as it likes, since it waits for a person.

        Raises:
            RedrafterError: If ``data`` is something else, before anything is sent; or if another
                rank is gone.
        """
        if data is not None or self.leads:
            _check_bytes(data)
        said = bytes(data) if self.leads and data is not None else b""
        head = _SIZE.pack(len(said)) + said[:_INLINE].ljust(_INLINE, b"\0")
        hurries = self.leads or not patient
        first = bytes(self._gathered(np.frombuffer(head, np.uint8), hurries=hurries)[0])
        size = _SIZE.unpack_from(first)[0]
        if size <= _INLINE:
            return first[_SIZE.size : _SIZE.size + size]
        own = np.zeros(size - _INLINE, np.uint8)
        if self.leads:
            own[:] = np.frombuffer(said[_INLINE:], np.uint8)
        return first[_SIZE.size :] + bytes(self._gathered(own)[0])

    def share_int(self, value: int) -> int:
        """A whole number of rank 0's, below 2**63."""
        return int.from_bytes(self.share(value.to_bytes(8, "little")), "little")

    def gather_texts(self, text: str) -> list[str]:
        """A text of every rank's, in the order of ranks; each may take its time before.

        It ends what machines do by themselves, as fetching and reading files, where one may be
        minutes behind another.
        """
        data = text.encode()
        sizes = self._gathered(np.array([len(data)], np.int64), hurries=False)
        longest = int(sizes.max())
        padded = np.frombuffer(data.ljust(longest, b"\0"), np.uint8)
        if not longest:
            return [""] * self.size
        rows = self._gathered(padded)
        return [bytes(row).rstrip(b"\0").decode() for row in rows]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn mlx's error that another process is gone into a sentence.

        First it waits: who watches the ranks knows which one it is, and ends this process with its
        name.

        Raises:
            RedrafterError: If nobody did.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            self.mark()  # the other is needed here, however far it has come
            time.sleep(_NAMING_SECONDS)
            raise RedrafterError(
                f"Another process of this run is gone ({' '.join(str(error).split())}): start all "
                "of them again."
            ) from error

    def _gathered(self, own: np.ndarray, *, hurries: bool = True) -> np.ndarray:
        """(size, n) of (n,): float64 travels as bytes, since no GPU has it.

        Args:
            own: This rank's.
            hurries: Whether others that do not come here soon hang: only who hurries is counted
                here before they are.
        """
        self.progress += hurries
        flat = mx.array(np.ascontiguousarray(own).view(np.uint8))
        with self.told():
            every = mx.distributed.all_gather(flat, group=self._group, stream=mx.cpu)
            mx.eval(every)
        self.progress += not hurries
        return np.array(every).reshape(self.size, -1).view(own.dtype)


def _check_bytes(data: object) -> None:
    if not isinstance(data, bytes | bytearray):
        given = " ".join(repr(data).split())
        raise RedrafterError(f"data has to be bytes, such as text.encode(), and is {given:.100}.")


def join() -> Ranks | None:
    """The processes that this one belongs to; None where it is alone.

    Raises:
        RedrafterError: If mlx.launch started several, and they cannot reach each other.
    """
    if is_one():
        return None
    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        raise RedrafterError(
            f"The processes of this run cannot reach each other ({error}): check the host file, "
            "and that the same command is started on every machine."
        ) from error
    return Ranks(group) if group.size() > 1 else None


def is_lost(error: BaseException) -> bool:
    """Whether an error of mlx's says that another process is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _LOST)
