"""Draft trees: candidates that share their prefixes, and the walk that accepts one path.

A tree of n nodes has its root, the last chosen token, at index 0; every other node holds one
drafted token. Node i may stand at any index after 0: nothing but ``ancestors`` says who follows
whom (ReDrafter, arXiv 2403.09919, section 3.3, "dynamic tree attention").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np


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

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Number of drafted tokens on the way to each node; 0 for the root."""
        depths: dict[int, int] = {-1: -1}

        def depth(node: int) -> int:
            if node not in depths:
                depths[node] = depth(self.parents[node]) + 1
            return depths[node]

        return tuple(depth(node) for node in range(len(self.parents)))


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
    """

    tokens: mx.array
    parents: mx.array
    depths: mx.array
    log_probs: mx.array
    ancestors: mx.array
    max_depth: int

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
            log_probs: Cumulative log-probability of each node; zeros if not given.

        Raises:
            ValueError: If the root is not first or a parent does not come before its child.
        """
        n = len(tokens)
        if len(parents) != n or n == 0 or parents[0] != -1:
            raise ValueError("a tree needs one parent a node, and -1 for its first, the root")
        depths = np.zeros(n, np.int32)
        ancestors = np.eye(n, dtype=np.bool_)
        for node in range(1, n):
            parent = parents[node]
            if not 0 <= parent < node:
                raise ValueError(f"node {node} has parent {parent}, which does not precede it")
            depths[node] = depths[parent] + 1
            ancestors[node] |= ancestors[parent]
        return cls(
            tokens=mx.array(list(tokens), dtype=mx.int32),
            parents=mx.array(list(parents), dtype=mx.int32),
            depths=mx.array(depths),
            log_probs=mx.array(list(log_probs or [0.0] * n), dtype=mx.float32),
            ancestors=mx.array(ancestors),
            max_depth=int(depths.max()),
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
        )

    def path_tokens(self) -> mx.array:
        """Tokens on the way to each node, int32 (n, max_depth + 1): column d is depth d.

        Columns deeper than the node hold 0.
        """
        levels = mx.arange(self.max_depth + 1)
        at_level = self.depths[:, None] == levels[None, :]
        hit = self.ancestors[:, :, None] & at_level[None, :, :]
        return mx.where(hit, self.tokens[None, :, None], 0).sum(axis=1)


def accept(tokens: Sequence[int], parents: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Follow, from the root, the child whose token is the target's choice.

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
