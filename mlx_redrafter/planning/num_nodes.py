"""How much of a draft is worth verifying, by its own scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def num_nodes_to_verify(
    chances: Sequence[float], counts: Sequence[int], seconds: Callable[[int], float], rate: float
) -> int:
    """How many of a draft's nodes to verify, from the first on.

    A forward over more rows has to earn its time: tokens that it yields on top, against those
    that the same time yields otherwise.

    Args:
        chances: The chance of acceptance of each node but the root, none before its parent.
        counts: Numbers of nodes to choose from.
        seconds: The time of a forward over so many rows, the root counted.
        rate: Tokens a second, as decoding goes on the whole.

    Returns:
        One of ``counts``.
    """
    gained = [1.0]
    for chance in chances:
        gained.append(gained[-1] + chance)
    return max(counts, key=lambda count: gained[count] - rate * seconds(1 + count))
