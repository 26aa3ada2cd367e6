"""Draft trees of several texts that share a forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from ..tree import DraftTree


@dataclass(frozen=True)
class BatchTree:
    """The trees of several texts, each after its own number of committed tokens.

    In a batch's buffers a text's committed tokens fill the first columns, in order, and its tree
    the next n; what comes after that is not looked at.

    Attributes:
        tokens: int32 (batch, n).
        depths: int32 (batch, n).
        ancestors: bool (batch, n, n).
        lengths: Committed tokens, int32 (batch,).
        longest: The largest length.
        max_depth: No node of any tree is deeper than this.
        leaf_bound: The most root-to-leaf paths that a tree can have.
    """

    tokens: mx.array
    depths: mx.array
    ancestors: mx.array
    lengths: mx.array
    longest: int
    max_depth: int
    leaf_bound: int

    def __len__(self) -> int:
        return int(self.tokens.shape[1])

    @classmethod
    def stack(cls, trees: Sequence[DraftTree], lengths: Sequence[int]) -> BatchTree:
        """Trees of equally many nodes, and the committed tokens before each.

        Raises:
            ValueError: If their numbers of nodes differ.
        """
        if len({len(tree) for tree in trees}) != 1:
            raise ValueError("the trees of a batch need equally many nodes")
        return cls(
            tokens=mx.stack([tree.tokens for tree in trees]),
            depths=mx.stack([tree.depths for tree in trees]),
            ancestors=mx.stack([tree.ancestors for tree in trees]),
            lengths=mx.array(list(lengths), dtype=mx.int32),
            longest=max(lengths),
            max_depth=max(tree.max_depth for tree in trees),
            leaf_bound=max(tree.leaf_bound for tree in trees),
        )

    def positions(self, offset: int | mx.array) -> mx.array:
        """Positions of the nodes, int32 (batch, n), where ``offset`` means that of the longest."""
        return self.depths + self.lengths[:, None] + (offset - self.longest)

    @cached_property
    def columns(self) -> mx.array:
        """Where the nodes are written, int32 (batch, 1, n, 1)."""
        columns = self.lengths[:, None] + mx.arange(len(self), dtype=mx.int32)
        return columns[:, None, :, None]

    def mask(self, window: int | None = None, chunk: int | None = None) -> mx.array:
        """Bool (batch, 1, n, longest + n): a text's tokens, then ancestors and self.

        Args:
            window: A node sees only the rows less than this many positions back; None: all.
            chunk: A node sees only the rows of its own chunk of so many positions; None: all.
        """
        n = len(self)
        columns = mx.arange(self.longest + n, dtype=mx.int32)[None]
        behind = columns - self.lengths[:, None]
        node = mx.clip(behind, 0, n - 1)
        drafted = (behind >= 0) & (behind < n)
        seen = mx.take_along_axis(self.ancestors, node[:, None], axis=2) & drafted[:, None]
        seen = seen | (behind < 0)[:, None]
        if window is not None or chunk is not None:
            depth = mx.take_along_axis(self.depths, node, axis=1)
            rows = mx.where(behind < 0, columns, self.lengths[:, None] + depth)[:, None]
            own = self.positions(self.longest)[..., None]
            if window is not None:
                seen = seen & (own - rows < window)
            if chunk is not None:
                seen = seen & (own // chunk == rows // chunk)
        return seen[:, None]
