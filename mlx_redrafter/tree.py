"""Draft trees: candidates that share their prefixes, and the walk that accepts one path.

A tree of n nodes has its root, the last chosen token, at index 0; every other node holds one
drafted token. Node i may stand at any index after 0: nothing but ``ancestors`` says who follows
whom (ReDrafter, arXiv 2403.09919, section 3.3, "dynamic tree attention").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
# What a leaf scores that only fills a tree up.
PADDING_SCORE = -100.0


@dataclass(frozen=True)
class HostTree:
    """A draft tree as Python numbers, read back once a step.

    Attributes:
        tokens: Token of each node, the root's first.
        parents: Index of each node's parent; -1 for the root.
        log_probs: Cumulative score of each node under the drafter; 0 for the root.

    Example, "the" followed by "cat sat" or "dog": tokens (the, cat, sat, dog), parents
    (-1, 0, 1, 0).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    log_probs: tuple[float, ...]

    def first(self, nodes: int) -> HostTree:
        """The root and the first ``nodes`` others, none of which stands before its parent."""
        n = 1 + nodes
        if n >= len(self.tokens):
            return self
        return HostTree(self.tokens[:n], self.parents[:n], self.log_probs[:n])

    def pick(self, nodes: Sequence[int]) -> HostTree:
        """The tree of some of its nodes, the root first and none before its parent."""
        if list(nodes) == list(range(len(self.tokens))):
            return self
        place = {node: index for index, node in enumerate(nodes)}
        return HostTree(
            tokens=tuple(self.tokens[node] for node in nodes),
            parents=tuple(-1 if node == 0 else place[self.parents[node]] for node in nodes),
            log_probs=tuple(self.log_probs[node] for node in nodes),
        )

    def path(self, node: int) -> list[int]:
        """The nodes on the way from the root to a node, both included."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def child(self, node: int, token: int) -> int | None:
        """The first child of a node with that token; None where there is none."""
        pairs = zip(self.parents, self.tokens, strict=True)
        return next((at for at, pair in enumerate(pairs) if pair == (node, token)), None)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Number of drafted tokens on the way to each node; 0 for the root."""
        if len(self.parents) == 1:  # that of every plain step
            return (0,)
        depths: dict[int, int] = {-1: -1}

        def depth(node: int) -> int:
            if node not in depths:
                depths[node] = depth(self.parents[node]) + 1
            return depths[node]

        return tuple(depth(node) for node in range(len(self.parents)))

    def comes_after(self, tokens: frozenset[int]) -> list[bool]:
        """For each node whether a drafted node on the way to it holds one of the tokens."""
        having = {node for node, token in enumerate(self.tokens) if node and token in tokens}
        if not having:
            return [False] * len(self.tokens)
        return [not having.isdisjoint(self.path(node)[:-1]) for node in range(len(self.tokens))]

    @property
    def favourites(self) -> list[int]:
        """The nodes down from the root, each the child of the one before that scores highest; of
        equal ones the first.
        """
        favourite: dict[int, int] = {}
        for node, parent in enumerate(self.parents):
            held = favourite.get(parent)
            if held is None or self.log_probs[node] > self.log_probs[held]:
                favourite[parent] = node
        path = [0]
        while path[-1] in favourite:
            path.append(favourite[path[-1]])
        return path

    def leaves(self, nodes: Sequence[int]) -> int:
        """Root-to-leaf paths of the tree of its root and some other nodes, none without its parent;
        1 for the root alone.
        """
        return max(1, 1 + len(nodes) - len({self.parents[node] for node in nodes}))

    @property
    def ancestors(self) -> BoolArray:
        """Bool (n, n); row i marks node i and its ancestors. No node stands before its parent."""
        ancestors = np.eye(len(self.parents), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        return ancestors


@dataclass(frozen=True)
class DraftTree:
    """A draft tree on the device, not yet evaluated.

    Attributes:
        tokens: int32 (n,).
        parents: int32 (n,); the root's is -1.
        depths: int32 (n,); the root's is 0.
        log_probs: float32 (n,), cumulative along each path.
        ancestors: bool (n, n); row i marks the nodes that node i sees: its ancestors and itself.
        max_depth: No node is deeper than this.
        max_leaves: There are no more root-to-leaf paths than this; None where nothing is known. A
            tree that can have one only is a chain, its nodes in the order of their depths.
        known: The same tree as Python numbers, where the host made it; None where its numbers are
            known on the device only.
    """

    tokens: mx.array
    parents: mx.array
    depths: mx.array
    log_probs: mx.array
    ancestors: mx.array
    max_depth: int
    max_leaves: int | None = None
    known: HostTree | None = None

    @property
    def leaf_bound(self) -> int:
        """The most root-to-leaf paths that the tree can have."""
        most = max(1, len(self) - 1)
        return most if self.max_leaves is None else min(most, self.max_leaves)

    @property
    def arrays(self) -> list[mx.array]:
        """All that the device knows of it."""
        return [self.tokens, self.parents, self.depths, self.log_probs, self.ancestors]

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @classmethod
    def from_parents(
        cls,
        tokens: Sequence[int],
        parents: Sequence[int],
        log_probs: Sequence[float] | None = None,
    ) -> DraftTree:
        """Build a tree from Python numbers, for sources other than the beam search.

        Args:
            tokens: Token of each node, the root's first.
            parents: Parent of each node, before it in the sequence; -1 for the root.
            log_probs: Cumulative log-probability of each node, 0 for the root; zeros if not given.

        Raises:
            ValueError: If the root is not first, a parent does not come before its child, or there
                are not as many scores as nodes.
        """
        n = len(tokens)
        if len(parents) != n or n == 0 or parents[0] != -1:
            raise ValueError("a tree needs one parent a node, and -1 for its first, the root")
        scores = [0.0] * n if log_probs is None else log_probs
        if len(scores) != n:
            raise ValueError(f"a tree of {n} nodes needs {n} scores, and was given {len(scores)}")
        for node in range(1, n):
            if not 0 <= parents[node] < node:
                raise ValueError(
                    f"node {node} has parent {parents[node]}, which does not precede it"
                )
        known = HostTree(
            tuple(map(int, tokens)),
            tuple(map(int, parents)),
            tuple(map(float, scores)),
        )
        return cls(
            tokens=mx.array(known.tokens, dtype=mx.int32),
            parents=mx.array(known.parents, dtype=mx.int32),
            depths=mx.array(known.depths, dtype=mx.int32),
            log_probs=mx.array(known.log_probs, dtype=mx.float32),
            ancestors=mx.array(known.ancestors),
            max_depth=max(known.depths),
            max_leaves=known.leaves(range(1, n)),
            known=known,
        )

    @classmethod
    def root_only(cls, root: mx.array) -> DraftTree:
        """The tree of a plain step: no candidates. ``root`` is int (1,) and may be unevaluated."""
        zero = mx.zeros((1,), dtype=mx.int32)
        return cls(
            tokens=root.astype(mx.int32),
            parents=zero - 1,
            depths=zero,
            log_probs=mx.zeros((1,)),
            ancestors=mx.ones((1, 1), dtype=mx.bool_),
            max_depth=0,
            max_leaves=1,
        )

    def first(self, nodes: int, known: HostTree | None = None) -> DraftTree:
        """The root and the first ``nodes`` others, none of which stands before its parent.

        Args:
            nodes: How many to keep.
            known: The whole tree as read back, which gives closer bounds of depth and leaves.
        """
        n = 1 + nodes
        if known is not None:
            depth = max(known.depths[:n])
            leaves = known.leaves(range(1, n))
            closer = replace(self, max_depth=depth, max_leaves=leaves, known=known)
            return closer if n == len(self) else closer.first(nodes)
        if n == len(self):
            return self
        return DraftTree(
            tokens=self.tokens[:n],
            parents=self.parents[:n],
            depths=self.depths[:n],
            log_probs=self.log_probs[:n],
            ancestors=self.ancestors[:n, :n],
            max_depth=min(self.max_depth, nodes),
            max_leaves=self.max_leaves,
            known=self.known and self.known.first(nodes),
        )

    def padded(self, size: int, token: int) -> DraftTree:
        """The same tree with further leaves after the root, all of one token, to ``size`` nodes.

        They cost rows but not correctness: where it is the target's choice, one is accepted.
        """
        n, more = len(self), size - len(self)
        if more <= 0:
            return self
        zeros = mx.zeros((more,), dtype=mx.int32)
        own = mx.eye(size, dtype=mx.bool_)[n:]
        root = mx.arange(size)[None] == 0
        widened = mx.pad(self.ancestors, [(0, 0), (0, more)])
        known = self.known
        return DraftTree(
            tokens=mx.concatenate([self.tokens, zeros + token]),
            parents=mx.concatenate([self.parents, zeros]),
            depths=mx.concatenate([self.depths, zeros + 1]),
            log_probs=mx.concatenate([self.log_probs, zeros.astype(mx.float32) + PADDING_SCORE]),
            ancestors=mx.concatenate([widened, own | root]),
            max_depth=max(self.max_depth, 1),
            max_leaves=self.leaf_bound + more,
            known=known
            and HostTree(
                known.tokens + (token,) * more,
                known.parents + (0,) * more,
                known.log_probs + (PADDING_SCORE,) * more,
            ),
        )

    def read(self) -> HostTree:
        """Its numbers; waits for those that are not known yet."""
        if self.known is not None:
            return self.known
        if len(self) == 1:
            return HostTree(read_numbers(self.tokens), (-1,), (0.0,))
        return HostTree(
            tokens=read_numbers(self.tokens),
            parents=read_numbers(self.parents),
            log_probs=read_numbers(self.log_probs),
        )

    def positions(self, offset: int | mx.array) -> mx.array:
        """Positions of the nodes, int32 (n,), when the root stands at ``offset``."""
        return self.depths + offset

    def path_tokens(self) -> mx.array:
        """Tokens on the way to each node, int32 (n, max_depth + 1): column d is depth d.

        Columns deeper than the node hold 0.
        """
        levels = mx.arange(self.max_depth + 1)
        at_level = self.depths[:, None] == levels[None, :]
        hit = self.ancestors[:, :, None] & at_level[None, :, :]
        return mx.where(hit, self.tokens[None, :, None], 0).sum(axis=1)


# The acceptance rule, on the host and on the device. A step accepts the longest path from the root
# on which every token is the target's choice after the node before it.


def accept(tokens: Sequence[int], parents: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Nodes of the path that a step accepts: from the root, the child that is the target's choice.

    Args:
        tokens: Token of each node.
        parents: Parent of each node; -1 for the root, node 0.
        choices: The target's choice after each node.

    Returns:
        Indices of the nodes on the accepted path, the root first. The target's choice after the
        last of them is the step's bonus token. With duplicates among siblings the first is taken.

    Example: tokens (5, 7, 9, 8), parents (-1, 0, 1, 0) and choices (7, 9, 4, 6) accept
    [0, 1, 2]: the step yields 7, 9 and the bonus 4.
    """
    children: dict[tuple[int, int], int] = {}
    for node in range(1, len(tokens)):
        children.setdefault((parents[node], tokens[node]), node)
    path = [0]
    while (child := children.get((path[-1], choices[path[-1]]))) is not None:
        path.append(child)
    return path


def accepted_leaf(tree: DraftTree, choices: mx.array) -> mx.array:
    """Index of the last node that :func:`accept` finds, computed on the device: int32 ().

    Args:
        tree: What was verified. Of siblings with the same token only one may have children, and
            where none has, the first is taken.
        choices: The target's choice after each node, int32 (n,).
    """
    chosen = tree.tokens == mx.take(choices, mx.maximum(tree.parents, 0))
    chosen = chosen | (tree.parents < 0)
    on_path = mx.all(chosen[None, :] | ~tree.ancestors, axis=1)
    return mx.argmax(mx.where(on_path, tree.depths, -1)).astype(mx.int32)


def read_numbers(array: mx.array) -> tuple[Any, ...]:
    """An array's numbers, by its first axis; waits for them."""
    return tuple(cast("list[Any]", array.tolist()))
