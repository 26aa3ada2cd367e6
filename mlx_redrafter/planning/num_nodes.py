"""How much of a draft is worth verifying, by its own scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def num_nodes_to_verify(
    chances: Sequence[float], sizes: Sequence[int], seconds: Callable[[int], float], rate: float
) -> int:
    """How many of a draft's nodes to verify, from the first on.

    A forward over more rows has to earn its time: tokens that it yields on top, against those
    that the same time yields otherwise.

    Args:
        chances: The chance of acceptance of each node but the root, none before its parent.
        sizes: Rows of the forwards that fill a step: all nodes, or so many less the root's.
        seconds: The time of a forward over so many rows, the root counted.
        rate: Tokens a second, as decoding goes on the whole.

    Returns:
        Their number.
    """
    drafted = len(chances)
    counts = [size - 1 for size in sizes if size - 1 < drafted] + [drafted]
    gained = [1.0]
    for chance in chances:
        gained.append(gained[-1] + chance)
    return max(counts, key=lambda count: gained[count] - rate * seconds(1 + count))
