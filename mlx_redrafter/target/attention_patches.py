"""Attention that makes masks or positions of its own: what stands in for them while a tree is
verified.

Llama 4 makes its chunk mask from row numbers, and scales queries by them; MiniMax M3 cuts the keys
into blocks by row and keeps the best of them. In a tree a row's number is not its position. Gemma 2
takes one mask for all texts, where a batch has one for each.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import mlx.core as mx

from ..cache.batch_tree import BatchTree
from ..cache.forward_context import ForwardContext
from ..tree import DraftTree

# What only Llama 4's attention looks at.
SCALED_BY_ROW = "attn_temperature_tuning"
# What only Gemma 2's attention looks at.
GROUPED_SCORES = "attn_logit_softcapping"
# MiniMax M3's method that narrows the mask to the best blocks of keys.
BLOCK_METHOD = "_block_mask"


def rebound(function: FunctionType, name: str, value: Any) -> FunctionType:
    """The same function, but one of its module's names means something else in it."""
    names = {**function.__globals__, name: value}
    closure, defaults = function.__closure__, function.__defaults__
    copy = FunctionType(function.__code__, names, function.__name__, defaults, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _ByDepth:
    """mlx.core, but a range of the rows' numbers is one of their positions."""

    def __init__(self, context: ForwardContext):
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    def arange(self, start: int, *args: Any) -> mx.array:
        """mx.arange(start, start + n) over n rows; (batch, n, 1) for a batch."""
        if self._context.tree is None:
            return mx.arange(start, *args)
        at = self._context.positions(start)
        return at if at.ndim == 1 else at[..., None]


def chunked_call(context: ForwardContext, base: FunctionType) -> Any:
    """Llama 4's attention: mask and query scales by the position of each node.

    Layers without chunks get the mask that their cache made, which is right as it is.
    """
    scaled = rebound(base, "mx", _ByDepth(context))

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if context.tree is not None and getattr(cache, "chunk", None):
            mask = cache.make_mask(x.shape[1])
        return scaled(self, x, mask, cache)

    return call


def grouped_call(context: ForwardContext, base: Any) -> Any:
    """Gemma 2's attention: its scores are grouped by key heads, and so must be a batch's mask."""

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        if isinstance(context.tree, BatchTree) and getattr(self, "repeats", 1) > 1:
            mask = mask[:, None]
        return base(self, x, mask, cache)

    return call


def block_method(context: ForwardContext, base: Any) -> Any:
    """MiniMax M3's choice of blocks, for each node as it would be made after its own path."""

    def method(self: Any, x: mx.array, mask: Any, offset: int, cache: Any) -> Any:
        tree = context.tree
        if tree is None:
            return base(self, x, mask, offset, cache)
        assert isinstance(tree, DraftTree), "batches of this architecture are refused"
        keys = self.index_k_proj(x).reshape(*x.shape[:2], 1, self.index_head_dim)
        keys = self.index_rope(self.index_k_norm(keys).transpose(0, 2, 1, 3), offset=offset)
        keys, _ = cache.update_and_fetch(keys, mx.zeros((*keys.shape[:3], 0), keys.dtype))
        blocks = -(-(offset + tree.max_depth + 1) // self.index_block_size)
        if self.index_topk_blocks >= blocks:
            return mask
        queries = self.index_q_proj(x).reshape(*x.shape[:2], self.index_n_heads, -1)
        queries = self.index_rope(self.index_q_norm(queries).transpose(0, 2, 1, 3), offset=offset)
        scores = queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2)
        scores = by_position(mx.where(mask, scores, -mx.inf), tree)
        kept = best_blocks(self, scores, context.positions(offset), blocks)
        rows = mx.concatenate([mx.arange(offset), context.positions(offset)])
        kept = mx.take(kept, rows // self.index_block_size, axis=-1) & mask
        return mx.repeat(kept, self.num_attention_heads // self.index_n_heads, axis=1)

    return method


def best_blocks(attention: Any, scores: mx.array, positions: mx.array, blocks: int) -> mx.array:
    """Which blocks of keys MiniMax M3 keeps for each row.

    Args:
        attention: Its attention module.
        scores: (1, index heads, rows, keys), keys in the order of their positions; minus infinity
            where a row does not see the key.
        positions: int32 (rows,).
        blocks: Number of blocks; the last may be short.

    Returns:
        Bool (1, index heads, rows, blocks).
    """
    size, local = attention.index_block_size, attention.index_local_blocks
    short = blocks * size - scores.shape[-1]
    scores = mx.pad(scores, [(0, 0), (0, 0), (0, 0), (0, short)], constant_values=-mx.inf)
    best = scores.reshape(*scores.shape[:3], blocks, size).max(axis=-1)
    ids, own = mx.arange(blocks), (positions // size)[:, None]
    best = mx.where((ids <= own) & (ids > own - local), mx.inf, best)
    count = attention.index_topk_blocks
    chosen = mx.argpartition(-best, kth=count - 1, axis=-1)[..., :count]
    none = mx.zeros(best.shape, dtype=mx.bool_)
    return mx.put_along_axis(none, chosen, mx.array(True), axis=-1)


def by_position(scores: mx.array, tree: DraftTree) -> mx.array:
    """Scores of a tree's rows with its columns in the order of positions.

    Args:
        scores: (1, heads, n, prefix + n); minus infinity where a node does not see the row.
        tree: n nodes.

    Returns:
        (1, heads, n, prefix + max_depth + 1): after the prefix, each node's own path.
    """
    n = len(tree)
    prefix, nodes = scores[..., :-n], scores[..., -n:]
    at = tree.depths[:, None] == mx.arange(tree.max_depth + 1)[None, :]
    path = mx.where(at, nodes[..., None], -mx.inf).max(axis=-2)
    return mx.concatenate([prefix, path], axis=-1)
