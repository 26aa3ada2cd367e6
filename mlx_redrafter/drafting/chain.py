"""Chains: a draft reduced to its likeliest path, for targets that verify no trees."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..tree import DraftTree
from .source import DraftInput, DraftSource, SourceAround


def chain_of(tree: DraftTree) -> DraftTree:
    """The likeliest of a tree's deepest paths, as a tree of ``max_depth + 1`` rows.

    Nothing is evaluated. A tree in which no node reaches ``max_depth`` is filled up with token 0,
    which costs rows but not correctness.
    """
    if len(tree) == 1:
        return tree
    rank = mx.where(tree.depths == mx.max(tree.depths), tree.log_probs, -mx.inf)
    line = mx.take(tree.ancestors, mx.argmax(rank), axis=0)
    depths = mx.arange(tree.max_depth + 1, dtype=mx.int32)
    hit = line[None, :] & (tree.depths[None, :] == depths[:, None])
    log_probs = mx.where(hit, tree.log_probs[None, :], 0).sum(axis=1)
    return DraftTree(
        tokens=mx.where(hit, tree.tokens[None, :], 0).sum(axis=1).astype(mx.int32),
        parents=depths - 1,
        depths=depths,
        log_probs=log_probs.astype(mx.float32),
        ancestors=depths[:, None] >= depths[None, :],
        max_depth=tree.max_depth,
        max_leaves=1,
    )


class ChainSource(SourceAround):
    """A draft source that proposes only the likeliest path of another's trees."""

    @property
    def lookback(self) -> int | None:
        """None: a chain is picked from a tree by its scores."""
        return None

    def __call__(self, state: DraftInput) -> DraftTree:
        """Propose a chain from ``state.root``."""
        return chain_of(self._source(state))

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        """The other's trees, as chains."""
        return [chain_of(tree) for tree in self._source.together(states)]

    def begin(self, prompt: Sequence[int]) -> DraftSource:
        """The chains of the other's source for this text."""
        own = self._source.begin(prompt)
        return self if own is self._source else ChainSource(own)
