"""A drafter laid out for drafts: what is the same at every level is made once a draft, or once.

A draft is hundreds of small operations, and beside a small model the host's work for each of them
counts. The head's first matrix takes [h ; s], and h, the target's hidden state, stays the same for
a whole draft: its product with h is taken once, and a level multiplies s by the other half only.
And a matrix that is multiplied from the right is transposed here, not at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from .drafter import Drafter
from .memory_drafter import MemoryDrafter, MemoryView

# (what the hidden state contributes, state) -> their sum in front of the first residual block
Projection = Callable[[mx.array, mx.array], mx.array]
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
    """A drafter whose weights are final, as drafts use it.

    Args:
        drafter: The draft head; half of its input projection, if it has one, is copied.

    Attributes:
        drafter: The same head on the same weights, for everything but its logits.
    """

    def __init__(self, drafter: Drafter):
        self.drafter: Drafter = _bound(drafter)
        has_projection = "input_proj" in drafter
        self._project = _state_projection(drafter.input_proj) if has_projection else None

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
        if start.before is None:
            state = self.drafter.initial_state(len(start.hidden))
        else:
            embeddings = start.embed(mx.maximum(start.before, 0))
            state = self.drafter.read(embeddings, start.before >= 0)
        hidden = start.hidden
        return self.project_hidden(hidden)[:, None], state.astype(hidden.dtype)[:, None]

    def advance(
        self,
        draft: Any,  # noqa: ARG002 - what other heads need
        embeddings: mx.array,
        state: mx.array,
        depth: int,  # noqa: ARG002
    ) -> mx.array:
        """Feed the tokens of a depth, 0 for the roots, to the states, (batch, m, width)."""
        return self.drafter.advance(embeddings, state)

    def project_hidden(self, hidden: mx.array) -> mx.array:
        """What a hidden state contributes to every level of a draft.

        Args:
            hidden: Target's final hidden state at the last verified position,
                (..., n, hidden_size).

        Returns:
            For :meth:`logits`; (..., n, exit_dim), or ``hidden`` itself.
        """
        if self._project is None:
            return hidden
        alone = mx.concatenate([hidden, mx.zeros_like(hidden)], axis=-1)
        projected: mx.array = self.drafter.input_proj(alone)
        return projected

    def logits(self, hidden_term: Any, state: mx.array) -> mx.array:
        """As ``Drafter.logits``, of a hidden state that went through :meth:`project_hidden`.

        Args:
            hidden_term: What it contributes, broadcastable to state but for the last axis.
            state: Recurrent state, shape (..., n, hidden_size).

        Returns:
            Shape (..., n, head_size).
        """
        if self._project is None:
            return self.drafter.logits(hidden_term, state)
        return self.drafter.output(self._project(hidden_term, state))


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


def _state_projection(layer: nn.Module) -> Projection | None:
    """What multiplies states by the second half of a projection; None where it cannot be halved."""
    if type(layer) is nn.Linear:
        matrix = _second_half(layer.weight).T
        mx.eval(matrix)  # now, and not as a part of some draft's graph
        return partial(_project, matrix)
    # Numbers that share a scale have to lie in one half.
    if type(layer) is nn.QuantizedLinear and layer.scales.shape[1] % 2 == 0:
        biases = None if layer.biases is None else _second_half(layer.biases)
        parts = _second_half(layer.weight), _second_half(layer.scales), biases
        mx.eval(parts)
        return partial(_project_quantized, layer, parts)
    return None


def _second_half(matrix: mx.array) -> mx.array:
    return mx.contiguous(matrix[:, matrix.shape[1] // 2 :])


def _project(matrix: mx.array, hidden_term: mx.array, state: mx.array) -> mx.array:
    return mx.addmm(hidden_term, state, matrix)


def _project_quantized(
    layer: nn.QuantizedLinear,
    half: tuple[mx.array, mx.array, mx.array | None],
    hidden_term: mx.array,
    state: mx.array,
) -> mx.array:
    weight, scales, biases = half
    return hidden_term + mx.quantized_matmul(
        state,
        weight,
        scales=scales,
        biases=biases,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
