"""The processes of a distributed run, as ``mlx.launch`` starts them, and what they agree on.

All ranks run the same steps. Time and chance are what could make them differ, so both come from
rank 0. The exchanges here are tiny and run on the CPU; a model's own run where mlx puts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import RedrafterError

# What mlx raises when another process is gone, by backend.
_LOST = ("[ring]", "[jaccl]", "[mpi]", "[nccl]", "connection", "peer")


class Ranks:
    """This process among the others.

    Args:
        group: mlx's group of all processes.

    Attributes:
        rank: Number of this process; 0 reads, prints and decides.
        size: Number of processes.
        exchanges: How many exchanges there were.
    """

    def __init__(self, group: mx.distributed.Group):
        self._group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.exchanges = 0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """What every rank says, in the order of ranks.

        Args:
            values: Numbers of this rank, equally many on all; kept to float64's precision.

        Raises:
            RedrafterError: If another rank is gone.
        """
        return [row.tolist() for row in self._gathered(np.array(values, np.float64))]

    def share(self, data: bytes) -> bytes:
        """What rank 0 says; the others' data is not looked at.

        Raises:
            RedrafterError: If another rank is gone.
        """
        size = int(self._gathered(np.array([len(data)], np.float64))[0, 0])
        own = np.zeros(size, np.uint8)
        if self.leads:
            own[:] = np.frombuffer(data, np.uint8)
        return bytes(self._gathered(own)[0]) if size else b""

    def share_int(self, value: int) -> int:
        """A whole number of rank 0's, below 2**63."""
        return int.from_bytes(self.share(value.to_bytes(8, "little")), "little")

    def _gathered(self, own: np.ndarray) -> np.ndarray:
        """(size, n) of (n,): float64 travels as bytes, since no GPU has it."""
        self.exchanges += 1
        flat = mx.array(np.ascontiguousarray(own).view(np.uint8))
        try:
            every = mx.distributed.all_gather(flat, group=self._group, stream=mx.cpu)
            mx.eval(every)
        except RuntimeError as error:
            raise lost(error) from error
        return np.array(every).reshape(self.size, -1).view(own.dtype)


def current_ranks() -> Ranks | None:
    """The processes that this one belongs to; None where it is alone.

    Raises:
        RedrafterError: If mlx.launch started several, and they cannot reach each other.
    """
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


def lost(error: BaseException) -> RedrafterError:
    """The sentence for it."""
    return RedrafterError(
        f"Another process of this run is gone ({' '.join(str(error).split())}): start all of them "
        "again."
    )
