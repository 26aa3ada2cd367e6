"""Quantised and bounded key/value caches, with mlx-lm's options and their meaning there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from ..ranges import is_count, shown
from .attention import TreeKVCache
from .layer_cache import LayerCache
from .prompt_cache import Quantization


@dataclass(frozen=True)
class CacheOptions:
    """How keys and values are kept.

    Attributes:
        max_kv_size: Keep the first four rows and the latest ones, so many in all; None keeps all.
            As in mlx-lm it is for models that make no caches of their own kind.
        kv_bits: Bits of a quantised key or value; None quantises nothing.
        kv_group_size: Numbers that share a scale.
        quantized_kv_start: The first position from which the cache is quantised.
    """

    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 5000

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        self._check("max_kv_size", lambda size: size >= 8, "a whole number from 8", unset=True)
        bits = (2, 3, 4, 5, 6, 8)
        self._check("kv_bits", bits.__contains__, "2, 3, 4, 5, 6 or 8", unset=True)
        self._check("kv_group_size", (32, 64, 128).__contains__, "32, 64 or 128")
        self._check("quantized_kv_start", lambda start: start >= 0, "a whole number from 0")

    def _check(
        self, name: str, allowed: Callable[[int], bool], wanted: str, *, unset: bool = False
    ) -> None:
        """Refuse what is none of the whole numbers allowed; those of numpy become Python's."""
        value = getattr(self, name)
        if value is None and unset:
            return
        if not is_count(value) or not allowed(value):
            raise RedrafterError(f"{name} is {shown(value)}, but has to be {wanted}.")
        object.__setattr__(self, name, int(value))

    @property
    def quantization(self) -> Quantization | None:
        """What to do to the layers, if anything."""
        if self.kv_bits is None:
            return None
        # The first forward of all runs before mlx-lm looks at the cache.
        start = max(1, self.quantized_kv_start)
        return Quantization(quantized, self.kv_bits, self.kv_group_size, start)


class QuantizedTreeKVCache(TreeKVCache):
    """A TreeKVCache whose buffers hold packed numbers, scales and biases.

    Args:
        plain: The layer so far; its rows are quantised.
        bits: Bits of a number.
        group_size: Numbers that share a scale.

    Attributes:
        bits: As given; mlx-lm's attention looks for it.
        group_size: As given.
    """

    def __init__(self, plain: TreeKVCache, bits: int, group_size: int):
        super().__init__(plain._context)
        self.bits = bits
        self.group_size = group_size
        self.offset = plain.offset
        if plain.keys is not None:
            self.keys, self.values = self._pack(plain.keys), self._pack(plain.values)

    def _pack(self, rows: mx.array) -> list[mx.array]:
        return list(mx.quantize(rows, group_size=self.group_size, bits=self.bits))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Append rows, (1, heads, n, head_dim) each; return all as (packed, scales, biases)."""
        return super().update_and_fetch(self._pack(keys), self._pack(values))

    def _length(self, n: int) -> int:
        """As many rows as are seen: quantised ones are not cuDNN's."""
        return self._prefix() + n

    def content(self) -> dict[str, Any]:
        """See :class:`LayerCache`; "packed" says how an empty layer becomes one that takes it."""
        return {**super().content(), "packed": [self.bits, self.group_size]}

    def unquantized(self) -> LayerCache:
        """An empty layer that is not quantised."""
        return TreeKVCache(self._context)


def quantized(layer: LayerCache, bits: int, group_size: int) -> LayerCache | None:
    """The same rows in a quantised cache; None where mlx-lm keeps the layer as it is."""
    if type(layer) is not TreeKVCache:
        return None
    return QuantizedTreeKVCache(layer, bits, group_size)
