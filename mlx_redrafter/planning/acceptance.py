"""How likely drafted nodes are to be accepted, learnt as texts go on.

A node is judged by its cumulative score, and by whether it lies on the drafter's favourite path:
under greedy decoding a favourite is accepted several times as often as another node that the
drafter scores alike.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from ..tree import HostTree

BIN_EDGES = (-0.05, -0.1, -0.2, -0.4, -0.7, -1.1, -1.6, -2.3, -3.2, -4.5, -6.5)
BINS = len(BIN_EDGES) + 1
KINDS = 2 * BINS  # bins of the scores of favourites, then of the others
PRIOR_WEIGHT = 4.0
FORGET = 0.998


class AcceptanceModel:
    """Chance that a node of each kind is accepted; learnt with a short memory.

    It begins with exp(score), which is what the drafter itself claims.
    """

    def __init__(self) -> None:
        centres = [-0.02, *((a + b) / 2 for a, b in pairwise(BIN_EDGES)), 2 * BIN_EDGES[-1]]
        self._hits = [PRIOR_WEIGHT * math.exp(centre) for centre in centres] * 2
        self._seen = [PRIOR_WEIGHT] * KINDS

    @property
    def chances(self) -> list[float]:
        """Chance of acceptance for each kind of node."""
        return [hits / seen for hits, seen in zip(self._hits, self._seen, strict=True)]

    def observe(self, record: StepRecord) -> None:
        """Learn from one verified tree."""
        accepted = set(record.path)
        for kind in range(KINDS):
            self._hits[kind] *= FORGET
            self._seen[kind] *= FORGET
        for node, kind in enumerate(kinds_of(record.tree)[1:], start=1):
            self._seen[kind] += 1
            self._hits[kind] += node in accepted


def kinds_of(tree: HostTree) -> list[int]:
    """The kind of each node, an index into ``AcceptanceModel.chances``; the root's says nothing.

    Favourites are the nodes behind which, from the root on, each token was the likeliest that the
    drafter gave after the one before.
    """
    favourite: dict[int, int] = {}
    for node, parent in enumerate(tree.parents):
        held = favourite.get(parent)
        if held is None or tree.log_probs[node] > tree.log_probs[held]:
            favourite[parent] = node
    on_path, node = {0}, 0
    while node in favourite:
        node = favourite[node]
        on_path.add(node)
    return [
        sum(score < edge for edge in BIN_EDGES) + (0 if node in on_path else BINS)
        for node, score in enumerate(tree.log_probs)
    ]


def subtree(tree: HostTree, shape: BeamShape) -> list[int]:
    """The nodes of a wide tree that a narrower search would have drafted, the root left out.

    Args:
        tree: A tree drafted with a shape at least as wide and as long.
        shape: The narrower shape.

    Returns:
        Node indices: the ``width`` best of each depth whose parents are in, up to ``length``, and
        of those the ``node_budget`` best.
    """
    kept = {0}
    for depth in range(1, shape.length + 1):
        level = [
            node
            for node, at in enumerate(tree.depths)
            if at == depth and tree.parents[node] in kept
        ]
        level.sort(key=lambda node: -tree.log_probs[node])
        kept.update(level[: shape.width])
    nodes = sorted(kept - {0}, key=lambda node: (-tree.log_probs[node], tree.depths[node]))
    return nodes[: shape.nodes]
