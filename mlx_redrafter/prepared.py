"""A drafter laid out for drafts: what is the same at every level is computed once a draft.

The head's first matrix takes [h ; s], and h, the target's hidden state, stays the same for a whole
draft. So its product with h is taken once, and a level multiplies s by the other half only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .drafter import Drafter

# (what the hidden state contributes, state) -> their sum in front of the first residual block
Projection = Callable[[mx.array, mx.array], mx.array]


class PreparedDrafter:
    """A drafter whose weights are final, as drafts use it.

    Heads without an input projection are used as they are.

    Args:
        drafter: The draft head; half of its input projection is copied.

    Attributes:
        drafter: As given.
    """

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        projects = drafter.config.has_input_proj and drafter.config.independent_heads is None
        self._project = _state_projection(drafter.input_proj) if projects else None

    def see(self, hidden: mx.array) -> mx.array:
        """What a hidden state contributes to every level of a draft.

        Args:
            hidden: Target's final hidden state at the last verified position, (..., hidden_size).

        Returns:
            For :meth:`logits`; (..., exit_dim), or ``hidden`` itself.
        """
        if self._project is None:
            return hidden
        alone = mx.concatenate([hidden, mx.zeros_like(hidden)], axis=-1)
        projected: mx.array = self.drafter.input_proj(alone)
        return projected

    def logits(self, seen: mx.array, state: mx.array) -> mx.array:
        """As ``Drafter.logits``, of a hidden state that :meth:`see` has seen.

        Args:
            seen: What it contributes, broadcastable to state but for the last axis.
            state: Recurrent state, shape (..., hidden_size).

        Returns:
            Shape (..., head_size).
        """
        if self._project is None:
            return self.drafter.logits(seen, state)
        return self.drafter.output(self._project(seen, state))


def _state_projection(layer: nn.Module) -> Projection | None:
    """What multiplies states by the second half of a projection; None where it cannot be halved."""
    if type(layer) is nn.Linear:
        return partial(_project, _second_half(layer.weight))
    # Numbers that share a scale have to lie in one half.
    if type(layer) is nn.QuantizedLinear and layer.scales.shape[1] % 2 == 0:
        biases = None if layer.biases is None else _second_half(layer.biases)
        half = _second_half(layer.weight), _second_half(layer.scales), biases
        return partial(_project_quantized, layer, half)
    return None


def _second_half(matrix: mx.array) -> mx.array:
    half = mx.contiguous(matrix[:, matrix.shape[1] // 2 :])
    mx.eval(half)  # now, and not as a part of some draft's graph
    return half


def _project(weight: mx.array, seen: mx.array, state: mx.array) -> mx.array:
    return mx.addmm(seen, state, weight.T)


def _project_quantized(
    layer: nn.QuantizedLinear,
    half: tuple[mx.array, mx.array, mx.array | None],
    seen: mx.array,
    state: mx.array,
) -> mx.array:
    weight, scales, biases = half
    return seen + mx.quantized_matmul(
        state,
        weight,
        scales=scales,
        biases=biases,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
