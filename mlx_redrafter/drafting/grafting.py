"""Copied tokens beside guessed ones: two draft trees of one root made into one.

Where both trees are known to the host, :func:`merge` unites them node by node. Where the guesses
are not evaluated yet, :func:`graft` does it on the device: the number of rows is fixed then, so a
copied node that was guessed too keeps a row of its own, which nothing follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..tree import BoolArray, DraftTree, HostTree


@dataclass(frozen=True)
class MergedTree:
    """Two trees of one root as one, each of its nodes once.

    Attributes:
        tokens: Token of each node, the root's first.
        parents: Index of each node's parent, which stands before it; -1 for the root.
        guesses: Index of each node in the first tree; -1 where it is not in it.
        copies: Index of each node in the second tree; -1 where it is not in it.
        guessed_at: The node that each node of the first tree has become; equal siblings are one.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    guesses: tuple[int, ...]
    copies: tuple[int, ...]
    guessed_at: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def likeliest(self, chances: Sequence[float], count: int) -> list[int]:
        """The root and the ``count`` likeliest nodes, which always form a tree.

        Args:
            chances: Of each node's acceptance, see :meth:`chances`.
            count: Nodes besides the root, at most.

        Returns:
            Node indices: the root, then down from it the likeliest child each time, whose rows stay
            where they are when they are accepted; then the others by chance.
        """
        order = sorted(range(1, len(self)), key=lambda node: (-chances[node], node))[:count]
        favourites = HostTree(self.tokens, self.parents, tuple(chances)).favourites
        on_path = {0, *order}.intersection(favourites)
        path = [node for node in favourites if node in on_path]
        return path + [node for node in order if node not in on_path]

    def best_path(self, chances: Sequence[float]) -> list[int]:
        """The path from the root, itself included, on which most tokens may be expected.

        Args:
            chances: Of each node's acceptance.
        """
        expected = [0.0] * len(self)
        for node in range(1, len(self)):
            expected[node] = expected[self.parents[node]] + chances[node]
        path = [max(range(len(self)), key=expected.__getitem__)]
        while path[-1] > 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def chances(self, guesses: Sequence[float], copies: Sequence[float]) -> list[float]:
        """Each node's chance of acceptance, from those in the two trees.

        Args:
            guesses: Of the nodes of the first tree.
            copies: Of the nodes of the second.

        Returns:
            The larger of a node's two, and no more than its parent's.
        """
        result = [1.0]
        for node in range(1, len(self)):
            guess, copy = self.guesses[node], self.copies[node]
            chance = max(guesses[guess] if guess >= 0 else 0.0, copies[copy] if copy >= 0 else 0.0)
            result.append(min(chance, result[self.parents[node]]))
        return result

    def scores(self, first: HostTree, second: HostTree) -> list[float]:
        """Each node's score: in the first of the two trees that has it.

        Args:
            first: The first tree that was merged.
            second: The second.
        """
        return [
            first.log_probs[guess] if guess >= 0 else second.log_probs[copy]
            for guess, copy in zip(self.guesses, self.copies, strict=True)
        ]

    def pick(self, nodes: Sequence[int], log_probs: Sequence[float]) -> HostTree:
        """The tree of some of the nodes.

        Args:
            nodes: The root, 0, and others, each after its parent.
            log_probs: Score of each node of the merged tree.
        """
        return HostTree(self.tokens, self.parents, tuple(log_probs)).pick(nodes)


def merge(guessed: HostTree, copied: HostTree) -> MergedTree:
    """Unite two trees: nodes with the same tokens on the way from the root become one.

    Args:
        guessed: The first tree; its nodes may stand in any order.
        copied: The second, whose root is the same.
    """
    tokens, parents = [guessed.tokens[0]], [-1]
    children: dict[tuple[int, int], int] = {}
    origins, places = [], []
    for tree in (guessed, copied):
        place = {0: 0}
        for node in sorted(range(1, len(tree.tokens)), key=tree.depths.__getitem__):
            key = (place[tree.parents[node]], tree.tokens[node])
            if key not in children:
                children[key] = len(tokens)
                tokens.append(key[1])
                parents.append(key[0])
            place[node] = children[key]
        origins.append({index: node for node, index in reversed(place.items())})
        places.append(tuple(place[node] for node in range(len(tree.tokens))))
    guesses, copies = (tuple(origin.get(n, -1) for n in range(len(tokens))) for origin in origins)
    return MergedTree(tuple(tokens), tuple(parents), guesses, copies, places[0])


def graft(guessed: DraftTree, copied: HostTree) -> DraftTree:
    """Set copied nodes after a tree that need not be evaluated; nothing is evaluated here.

    A copied node whose path is in the tree already stays a leaf beside its double, and what follows
    it follows the double: walks that take the first of equal siblings, or the deepest node that the
    choices reach, then miss nothing of either tree.

    Args:
        guessed: The tree, n nodes; no token twice among siblings.
        copied: A tree of the same root, 1 + m nodes, parents before their children; no token twice
            among siblings.

    Returns:
        A tree of n + m nodes: those of ``guessed`` first, then those of ``copied`` but the root.
    """
    n, m = len(guessed), len(copied.tokens) - 1
    if m == 0:
        return guessed
    depths = np.array(copied.depths, np.int32)
    strict = copied.ancestors & ~np.eye(1 + m, dtype=np.bool_)
    rows = mx.arange(n, n + m, dtype=mx.int32)
    place = mx.concatenate([mx.zeros((1,), mx.int32), _doubles(guessed, copied, strict, rows)])
    stands = place[:, None] == mx.arange(n + m)
    above = (mx.array(strict[1:])[:, :, None] & stands[None]).any(axis=1)
    lines = above | (rows[:, None] == mx.arange(n + m))
    blank = mx.zeros((n, m), dtype=mx.bool_)
    parents = mx.take(place, mx.array(copied.parents[1:], dtype=mx.int32))
    return DraftTree(
        tokens=mx.concatenate([guessed.tokens, mx.array(copied.tokens[1:], dtype=mx.int32)]),
        parents=mx.concatenate([guessed.parents, parents]),
        depths=mx.concatenate([guessed.depths, mx.array(depths[1:])]),
        log_probs=mx.concatenate(
            [guessed.log_probs, mx.array(copied.log_probs[1:], dtype=mx.float32)]
        ),
        ancestors=mx.concatenate([mx.concatenate([guessed.ancestors, blank], axis=1), lines]),
        max_depth=max(guessed.max_depth, int(depths.max())),
        max_leaves=guessed.leaf_bound + m,
    )


def _doubles(
    guessed: DraftTree,
    copied: HostTree,
    strict: BoolArray,
    rows: mx.array,
) -> mx.array:
    """For each copied node but the root the guessed one with its path, or else its own row."""
    depths = np.array(copied.depths, np.int32)
    levels = min(guessed.max_depth, int(depths.max()))
    paths = np.zeros((len(depths), levels + 1), np.int32)
    for node, depth in enumerate(depths):
        if depth <= levels:
            paths[node, depth] = copied.tokens[node]
        for ancestor in np.flatnonzero(strict[node]):
            if depths[ancestor] <= levels:
                paths[node, depths[ancestor]] = copied.tokens[ancestor]
    theirs = guessed.path_tokens()[:, 1 : levels + 1]
    same = (mx.array(paths[1:, None, 1:]) == theirs[None]).all(axis=2)
    same = same & (mx.array(depths[1:])[:, None] == guessed.depths[None])
    return mx.where(same.any(axis=1), mx.argmax(same, axis=1).astype(mx.int32), rows)
