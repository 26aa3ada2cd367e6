"""What takes the place of mlx-lm's caches, so that drafts can be verified and taken back."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from ..cache.attention import ChunkedTreeKVCache, TreeKVCache
from ..cache.composite import CacheGroup
from ..cache.forward_context import ForwardContext
from ..cache.layer_cache import LayerCache
from ..cache.recurrent import RecurrentCache


def parts_of(raw: Any) -> tuple[Any, ...]:
    """The caches of a layer: one, or those of a list."""
    return tuple(raw.caches) if type(raw) is CacheList else (raw,)


def is_state(raw: Any) -> bool:
    """Whether a cache holds arrays that are replaced as a whole, as recurrent state is."""
    # DeepSeek-V4.1's LayerCache concatenates; nothing is written into.
    return type(raw) is ArraysCache or type(raw).__name__ == "LayerCache"


def layer_cache(raw: Any, context: ForwardContext, *, keeps_points: bool) -> LayerCache | None:
    """What takes the place of one of mlx-lm's caches; None for a kind that is not known."""
    if type(raw) is KVCache:
        return TreeKVCache(context)
    if type(raw) is RotatingKVCache and raw.keep == 0:
        return TreeKVCache(context, raw.max_size, keeps_points=keeps_points)
    if type(raw) is ChunkedKVCache:
        return ChunkedTreeKVCache(context, raw.chunk_size)
    if is_state(raw):
        return RecurrentCache(raw, context)
    if type(raw) is CacheList:
        parts = [layer_cache(part, context, keeps_points=keeps_points) for part in raw.caches]
        known = [part for part in parts if part is not None]
        states = sum(isinstance(part, RecurrentCache) for part in known)
        return CacheGroup(known) if len(known) == len(parts) and states <= 1 else None
    return None
