"""The cache that a text is decoded in: a new one or an earlier turn's, checked first."""

from __future__ import annotations

from ..cache.attention import TreeKVCache
from ..cache.model_identity import same
from ..cache.prompt_cache import PromptCache, Quantization
from ..cache.quantized import CacheOptions
from ..errors import RedrafterError
from ..target.target import Target
from ..tree import DraftTree


def open_cache(
    target: Target, cache: PromptCache | None, options: CacheOptions, *, drafts: bool
) -> PromptCache:
    """A cache for decoding with these options: the one given, or an empty one.

    The cache stays as it is until the text begins: another may be under way in it.

    Args:
        target: Whose.
        cache: Of an earlier turn; its size limit, if any, stays what it is.
        options: How keys and values are to be kept when the text has begun.
        drafts: Whether drafts will be verified in it.

    Raises:
        RedrafterError: If the options do not fit the model, or a draft.
    """
    if cache is None:
        cache = target.make_cache(options.max_kv_size)
    target.check_cache(cache)
    if drafts and not cache.can_discard:
        raise RedrafterError(
            "A cache bounded by max_kv_size overwrites rows that a rejected draft would have to "
            "give back: leave max_kv_size out, or decode without drafting."
        )
    if options.quantization is not None:
        _check(target, cache, options.quantization)
    return cache


def forget_other_weights(target: Target, cache: PromptCache) -> None:
    """Empty a cache whose rows are of weights that the model no longer has; texts begin so.

    Loaded, adapted or trained in the process, a model has other arrays; an adapter that is switched
    off has another scale. Numbers that were changed within an array are not seen: that would take a
    second handle on every weight, which kept all old ones in memory until the next text.
    """
    weights = target.weights.references()
    assert weights is not None, "a target keeps its model"
    if cache.weights is not None and len(cache) and not same(cache.weights, weights):
        cache.reset()
    cache.weights = weights


def _check(target: Target, cache: PromptCache, quantization: Quantization) -> None:
    """Refuse what mlx-lm could not do either, before anything is computed."""
    for index, layer in enumerate(cache.layers):
        window = layer.window if isinstance(layer, TreeKVCache) else None
        if not cache.can_discard or (window and type(layer) is TreeKVCache):
            kind = "a sliding window" if window else "a cache bounded by max_kv_size"
            raise RedrafterError(
                f"kv_bits cannot be used here: layer {index} keeps {kind}, which mlx-lm does not "
                "quantise; leave kv_bits out."
            )
    probe = target.make_cache()
    probe.quantization = Quantization(
        quantization.convert, quantization.bits, quantization.group_size, 0
    )
    try:  # shapes only; nothing is evaluated
        for rows in (1, 2):
            target.verify(DraftTree.from_parents([0] * rows, range(-1, rows - 1)), probe)
    except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise RedrafterError(
            f"The key/value cache of the architecture '{target.architecture}' cannot be quantised "
            f"with kv_bits {quantization.bits} and kv_group_size {quantization.group_size} "
            f"({reason}): choose others or leave kv_bits out."
        ) from error
