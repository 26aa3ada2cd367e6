"""What a target chose after the nodes of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

# What was chosen where nothing may come next, or a caller's sampler named no id: it reads the
# embedding's last row, and no token of a draft is it.
NO_TOKEN = -1


class Choices(NamedTuple):
    """The target's choice after each node of a tree.

    Attributes:
        tokens: int32 (n,); ``NO_TOKEN`` where none could be chosen.
        flipped_by_noise: Whether the noise made it another than the likeliest token, bool (n,);
            None when greedy.
        logprobs: Log-probabilities of ``tokens``, float32 (n,); None where not asked for.
        top_tokens: The likeliest tokens, in no order, (n, k); None likewise.
        top_logprobs: Theirs, float32 (n, k); None likewise.
        all_logprobs: Those of all tokens, float32 (n, vocab_size); None likewise.
    """

    tokens: mx.array
    flipped_by_noise: mx.array | None
    logprobs: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None
    all_logprobs: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Those that there are, to evaluate."""
        return [array for array in self if array is not None]

    def padded(self, size: int) -> Choices:
        """The same with further nodes, to ``size``, that are never accepted: all zero."""
        sides = [(0, size - len(self.tokens))]
        return Choices._make(
            one if one is None else mx.pad(one, sides + [(0, 0)] * (one.ndim - 1)) for one in self
        )

    @classmethod
    def at(cls, path: Sequence[int], made: Sequence[Choices], size: int) -> Choices:
        """Those of the nodes on a path, one of each, among ``size``; the others' are all zero."""
        columns = zip(*made, strict=True)
        joined = cls._make(None if one[0] is None else mx.concatenate(list(one)) for one in columns)
        places = {node: place for place, node in enumerate(path)}
        rows = mx.array([places.get(node, len(path)) for node in range(size)])
        padded = joined.padded(len(path) + 1)
        return cls._make(one if one is None else mx.take(one, rows, axis=0) for one in padded)
