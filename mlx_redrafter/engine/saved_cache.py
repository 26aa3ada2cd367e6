"""A cache from a file, for a model that has the weights that it was saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache.cache_file import read_cache, refuse_damaged
from ..cache.layer_cache import LayerCache
from ..cache.prompt_cache import PromptCache
from ..cache.quantized import quantized
from ..cache.text_memory import MemoryOwner
from ..target.target import Target


def load_cache(target: Target, head: MemoryOwner | None, path: str | Path) -> PromptCache:
    """Read what ``PromptCache.save`` wrote; see ``SpeculativeModel.load_cache``.

    Args:
        target: Whose cache it is to be.
        head: The model's draft head, if it keeps anything of texts.
        path: The file.
    """
    content = read_cache(path, target.weights.identity())
    cache = target.make_cache()
    try:
        pairs = zip(cache.layers, content["layers"], strict=True)
        cache.layers = [_layer_for(layer, saved) for layer, saved in pairs]
        cache.take_over(content, head)
    except (KeyError, TypeError, ValueError) as error:
        refuse_damaged(path, error)
    return cache


def _layer_for(layer: LayerCache, saved: dict[str, Any]) -> LayerCache:
    """An empty layer of the kind that was saved: quantised where that one was."""
    packed = saved.get("packed")
    made = layer if packed is None else quantized(layer, *packed)
    if made is None:
        raise ValueError("a layer was quantised that is never quantised")
    return made
