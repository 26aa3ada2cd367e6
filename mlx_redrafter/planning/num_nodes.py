"""How many of several nodes, the likeliest first, are worth verifying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate


def best_prefix(
    chances: Sequence[float],
    sizes: Sequence[int],
    seconds: Callable[[int], float],
    rate: float,
    floor: float,
) -> tuple[int, float]:
    """How many nodes to verify, from the first on, and what that gains over none.

    A forward over more rows has to earn its time: tokens that it yields on top, against those
    that the same time yields otherwise.

    Args:
        chances: The chance of acceptance of each node but the root, none before its parent.
        sizes: Rows of the forwards that fill a step: all nodes, or so many less the root's.
        seconds: The time of a forward over so many rows, the root counted.
        rate: Tokens a second, as decoding goes on the whole.
        floor: The time of a step that verifies none of them.

    Returns:
        Their number, and the gain in tokens; 0 and 0 where nothing is gained.
    """
    tokens = [0.0, *accumulate(chances)]
    best, gained = 0, 0.0
    for count in filling(sizes, len(chances)):
        gain = tokens[count] - rate * (seconds(1 + count) - floor)
        if count and gain > gained:
            best, gained = count, gain
    return best, gained


def filling(sizes: Sequence[int], most: int, others: int = 1) -> list[int]:
    """0, numbers of nodes that fill one of some numbers of rows, and ``most``; ascending.

    Args:
        sizes: The numbers of rows.
        most: Nodes that there are.
        others: Rows beside them.
    """
    counts = (size - others for size in sizes)
    return sorted({0, most, *(count for count in counts if 0 < count < most)})
