"""Draft trees as batches of their root-to-leaf paths, for modules that carry recurrent state.

Attention sees a node's ancestors through a mask. A recurrence sees whatever stands before a row, so
each path of a tree becomes a sequence of its own: (paths, levels) rows, in which nodes that several
paths share stand several times. All indices are computed on the device; only the number of paths
and levels, bounds of what the tree may have, are known when the graph is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..tree import DraftTree
from .batch_tree import BatchTree


@dataclass(frozen=True)
class PathPositions:
    """Where the rows of a batch of paths stand in their texts.

    Attributes:
        starts: Committed tokens before each path, int32 (paths,).
        longest: The number of them that an offset names, which is that of the longest text.
        levels: Rows of each path.
    """

    starts: mx.array
    longest: int
    levels: int

    def __len__(self) -> int:
        return self.levels

    def positions(self, offset: int | mx.array) -> mx.array:
        """Positions of the rows, int32 (paths, levels), where ``offset`` means the longest's."""
        return self.starts[:, None] + mx.arange(self.levels) + (offset - self.longest)


@dataclass(frozen=True)
class TreePaths:
    """Where the nodes of one tree, or of equally large ones in a batch, stand on their paths.

    Paths come in the order of their last nodes. Levels beyond a path's end, and paths beyond the
    number that a tree has, repeat nodes; what is computed there is not looked at.

    Attributes:
        batch: Number of trees.
        nodes: Nodes of each.
        paths: Paths of each, at least as many as it has leaves.
        levels: Rows of each path, the root's included.
        rows: The node on each row, counted through the batch, int32 (batch * paths * levels,).
        places: A row for each node, int32 (batch * nodes,).
        placing: Where the rows stand in their texts; None for a single tree, whose paths begin
            where the text ends.
    """

    batch: int
    nodes: int
    paths: int
    levels: int
    rows: mx.array
    places: mx.array
    placing: PathPositions | None = None

    @classmethod
    def of(cls, tree: DraftTree | BatchTree) -> TreePaths:
        """The paths of a tree or of a batch of trees; nothing is evaluated."""
        single = isinstance(tree, DraftTree)
        ancestors = tree.ancestors[None] if single else tree.ancestors
        depths = tree.depths[None] if single else tree.depths
        batch, n = depths.shape
        paths, levels = tree.leaf_bound, tree.max_depth + 1
        order = mx.arange(n)
        # Nobody but itself has a leaf among its ancestors.
        rank = mx.where(ancestors.sum(axis=1) == 1, order, n + order)
        ends = mx.argsort(rank, axis=-1)[:, :paths]
        lines = mx.take_along_axis(ancestors, ends[..., None], axis=1)
        standing = depths[:, None, :] == mx.arange(levels)[None, :, None]
        at = mx.argmax(lines[:, :, None] & standing[:, None], axis=-1)
        first = mx.arange(batch)[:, None]
        rows = at.reshape(batch, -1) + first * n
        places = (mx.argmax(lines, axis=1) + first * paths) * levels + depths
        placing = None
        if isinstance(tree, BatchTree):
            placing = PathPositions(mx.repeat(tree.lengths, paths), tree.longest, levels)
        return cls(
            batch, n, paths, levels, rows.reshape(-1).astype(mx.int32),
            places.reshape(-1).astype(mx.int32), placing,
        )  # fmt: skip

    def holds_nodes(self, value: Any) -> bool:
        """Whether a value is an array with one row a node, (batch, nodes, ...)."""
        return isinstance(value, mx.array) and value.shape[:2] == (self.batch, self.nodes)

    def holds_rows(self, value: Any) -> bool:
        """Whether a value is an array with a row a path and level, (batch * paths, levels, ...)."""
        shape = self.batch * self.paths, self.levels
        return isinstance(value, mx.array) and value.ndim > 2 and value.shape[:2] == shape

    def to_rows(self, nodes: mx.array) -> mx.array:
        """(batch, nodes, ...) to (batch * paths, levels, ...)."""
        flat = nodes.reshape(-1, *nodes.shape[2:])
        shape = self.batch * self.paths, self.levels, *nodes.shape[2:]
        return mx.take(flat, self.rows, axis=0).reshape(shape)

    def to_nodes(self, rows: mx.array) -> mx.array:
        """(batch * paths, levels, ...) to (batch, nodes, ...)."""
        flat = rows.reshape(-1, *rows.shape[2:])
        shape = self.batch, self.nodes, *rows.shape[2:]
        return mx.take(flat, self.places, axis=0).reshape(shape)

    def spread(self, state: mx.array) -> mx.array:
        """A state for each tree, (batch, ...), as one for each path, (batch * paths, ...)."""
        if self.batch == 1:  # a view, which only some modules need copied
            return mx.broadcast_to(state, (self.paths, *state.shape[1:]))
        return mx.repeat(state, self.paths, axis=0)

    def path_of(self, node: int) -> mx.array:
        """The path of a single tree on which a node stands, int32 (1,)."""
        return self.places[node : node + 1] // self.levels


def take_nodes(
    value: mx.array, sequences: Sequence[int], paths: Sequence[Sequence[int]]
) -> mx.array:
    """Rows of (batch, nodes, ...) along one path of equal length for each of some sequences.

    Returns:
        (sequences, length, ...).
    """
    nodes = value.shape[1]
    index = [
        [nodes * row + node for node in path] for row, path in zip(sequences, paths, strict=True)
    ]
    flat = value.reshape(-1, *value.shape[2:])
    return mx.take(flat, mx.array(index, dtype=mx.int32), axis=0)
