"""A drafter laid out for drafts: what is the same at every level is made once a draft, or once.

A draft is hundreds of small operations, and beside a small model the host's work for each of them
counts. So a matrix that is multiplied from the right is transposed here, not at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from .drafter import Drafter
from .memory_drafter import MemoryDrafter, MemoryView

Embed = Callable[[mx.array], mx.array]


class DraftStart(NamedTuple):
    """Where drafts of one shape begin.

    Attributes:
        embed: The target's input embedding.
        hidden: What the drafts start from, (batch, state_size).
        before: Tokens before the roots, int32 (batch, lookback), -1 where there is none; None
            without a lookback.
        memory: What the drafts see of the text; None without a memory.
        length: Levels of the draft.
    """

    embed: Embed
    hidden: mx.array
    before: mx.array | None
    memory: MemoryView | None
    length: int


class PreparedDrafter:
    """A drafter whose weights are final, as drafts use it; ``kinds.prepare`` makes one.

    Args:
        drafter: The draft head.

    Attributes:
        drafter: The same head on the same weights, for everything but its logits.
    """

    def __init__(self, drafter: Drafter):
        self.drafter: Drafter = _bound(drafter)

    @property
    def memory_head(self) -> MemoryDrafter | None:
        """The head whose drafts look into a memory of the text; None where they look into none."""
        return None

    @property
    def state_size(self) -> int:
        """Width of what a draft starts from, ``DraftInput.hidden``."""
        config = self.drafter.config
        return config.state_size or config.hidden_size

    def begin(self, start: DraftStart) -> tuple[Any, mx.array]:
        """What stays the same for a whole draft, and the states when they come to their roots.

        Returns:
            The first for :meth:`advance` and :meth:`logits`; states (batch, 1, width).
        """
        raise NotImplementedError

    def advance(self, draft: Any, embeddings: mx.array, state: mx.array, depth: int) -> mx.array:
        """Feed the tokens of a depth, 0 for the roots, to the states, (batch, m, width)."""
        raise NotImplementedError

    def logits(self, draft: Any, state: mx.array) -> mx.array:
        """Logits of the states (batch, m, width), (batch, m, head_size)."""
        raise NotImplementedError


class BoundLinear:
    """What a layer computes for (..., n, in), its matrix transposed beforehand."""

    def __init__(self, layer: nn.Linear):
        self._matrix: mx.array = layer.weight.T
        self._bias: mx.array | None = layer.bias[None] if "bias" in layer else None
        mx.eval(self._matrix, self._bias)  # views; and now, not as a part of some draft's graph

    def __call__(self, x: mx.array) -> mx.array:
        """(..., n, in) to (..., n, out)."""
        if self._bias is None:
            return x @ self._matrix
        return mx.addmm(self._bias, x, self._matrix)


def _bound(module: Any) -> Any:
    """A module on the same weights, its full-precision layers bound; anything else as it is."""
    if type(module) is nn.Linear:
        return BoundLinear(module)
    if not isinstance(module, nn.Module):
        return module
    result = copy(module)
    for name, child in module.children().items():
        result[name] = tree_map(_bound, child, is_leaf=lambda part: isinstance(part, nn.Module))
    return result
