"""How likely drafted nodes are to be accepted, learnt as texts go on.

A node is judged by its cumulative score, and by whether it lies on the drafter's favourite path:
under greedy decoding a favourite is accepted several times as often as another node that the
drafter scores alike.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..drafting.recorded import RecordedDraft, RecordedDrafts
from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from ..tree import HostTree
from .forgetting import DOUBTED, FORGET

FloatArray = npt.NDArray[np.float64]

BIN_EDGES = (-0.05, -0.1, -0.2, -0.4, -0.7, -1.1, -1.6, -2.3, -3.2, -4.5, -6.5)
_FALLING_EDGES = [-edge for edge in BIN_EDGES]
BINS = len(BIN_EDGES) + 1
KINDS = 2 * BINS  # bins of the scores of favourites, then of the others
# What the drafter itself claims counts as so many nodes of each kind, however many were seen.
PRIOR_WEIGHT = 3.0
# Drafts from before count as so many steps, however many they are: this text may be unlike those.
RECORDED_STEPS = 16
# In place of FORGET until drafts are judged worth it: what was learnt at one place must not stand
# in the way of another.
FORGET_TRYING = 0.85


class AcceptanceModel:
    """Chance that a node of each kind is accepted; learnt with a short memory.

    It begins with exp(score), which is what the drafter itself claims.

    Args:
        recorded: Drafts from before, learnt from first.
    """

    def __init__(self, recorded: RecordedDrafts | None = None) -> None:
        centres = [-0.02, *((a + b) / 2 for a, b in pairwise(BIN_EDGES)), 2 * BIN_EDGES[-1]]
        self._claimed = np.array([math.exp(centre) for centre in centres] * 2)
        self._hits = np.zeros(KINDS)
        self._seen = np.zeros(KINDS)
        if recorded is not None:
            for draft in recorded.drafts:
                self.observe(draft)
            share = min(1.0, RECORDED_STEPS / max(1, len(recorded.drafts)))
            self._hits *= share
            self._seen *= share

    @property
    def chances(self) -> FloatArray:
        """Chance of acceptance for each kind of node."""
        hits = self._hits + PRIOR_WEIGHT * self._claimed
        return np.asarray(hits / (self._seen + PRIOR_WEIGHT))

    def save(self) -> tuple[FloatArray, FloatArray]:
        """What is known by now, for :meth:`restore`."""
        return self._hits.copy(), self._seen.copy()

    def restore(self, saved: tuple[FloatArray, FloatArray]) -> None:
        """Forget what was learnt since."""
        self._hits, self._seen = saved[0].copy(), saved[1].copy()

    def begin_again(self, drafts: Sequence[tuple[BeamShape, StepRecord]]) -> None:
        """Count all that is known as a few steps; then learn from some drafts."""
        self._hits *= DOUBTED
        self._seen *= DOUBTED
        for _, record in drafts:
            if not record.watched:  # will be told of as a whole
                self.observe(record)

    def observe(self, record: StepRecord | RecordedDraft, *, trying: bool = False) -> None:
        """Learn from one verified tree.

        Args:
            record: How the step went.
            trying: Whether it is not known yet that drafts are worth it.
        """
        forget = FORGET_TRYING if trying else FORGET
        self._hits *= forget
        self._seen *= forget
        accepted = set(record.path)
        for node, kind in enumerate(kinds_of(record.tree)[1:], start=1):
            self._seen[kind] += 1
            self._hits[kind] += node in accepted


def kinds_of(tree: HostTree) -> list[int]:
    """The kind of each node, an index into ``AcceptanceModel.chances``; the root's says nothing.

    Favourites are the nodes after which, from the root on, each token was the likeliest that the
    drafter gave after the one before.
    """
    on_path = set(tree.favourites)
    return [
        bisect_left(_FALLING_EDGES, -score) + (0 if node in on_path else BINS)
        for node, score in enumerate(tree.log_probs)
    ]


def subtree(tree: HostTree, shape: BeamShape, best: Sequence[int] | None = None) -> list[int]:
    """The nodes of a wide tree that a search of another shape would have drafted, without the root.

    Args:
        tree: A tree drafted with a shape at least as wide and as long.
        shape: The narrower shape.
        best: ``narrowed(tree, shape.width)``, where it is known.
    """
    best = narrowed(tree, shape.width) if best is None else best
    within = [node for node in best if tree.depths[node] <= shape.length]
    if shape.max_leaves is None:
        return within[: shape.nodes]
    path = tree.favourites[1 : 1 + shape.length]
    beside = [node for node in within if node not in path and tree.parents[node] in (0, *path)]
    return [*path, *beside[: shape.max_leaves - 1]][: shape.nodes]


def narrowed(tree: HostTree, width: int) -> list[int]:
    """The nodes of a wide tree that a narrower search would have drafted, the root left out.

    Args:
        tree: A tree drafted at least as wide.
        width: Nodes of each depth whose parents are in, the best ones.

    Returns:
        Node indices, the best first.
    """
    levels: dict[int, list[int]] = {}
    for node, depth in enumerate(tree.depths):
        levels.setdefault(depth, []).append(node)
    kept = {0}
    for depth in sorted(levels)[1:]:
        level = [node for node in levels[depth] if tree.parents[node] in kept]
        level.sort(key=lambda node: -tree.log_probs[node])
        kept.update(level[:width])
    return sorted(kept - {0}, key=lambda node: (-tree.log_probs[node], tree.depths[node]))
