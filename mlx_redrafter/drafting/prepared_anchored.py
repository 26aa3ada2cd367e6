"""Heads whose drafts start from one hidden state, laid out for drafts.

The recurrent head's first matrix takes [h ; s], and h, the target's hidden state, stays the same
for a whole draft: its product with h is taken once, and a level multiplies s by the other half
only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .prepared_drafter import DraftStart, PreparedDrafter
from .recurrent_drafter import AnchoredDrafter, RecurrentDrafter

# (what the hidden state contributes, state) -> their sum in front of the first residual block
Projection = Callable[[mx.array, mx.array], mx.array]


class PreparedAnchoredDrafter(PreparedDrafter):
    """An ``AnchoredDrafter`` whose weights are final, as drafts use it."""

    drafter: AnchoredDrafter

    def begin(self, start: DraftStart) -> tuple[mx.array, mx.array]:
        """See ``PreparedDrafter.begin``; the first is what the hidden states contribute."""
        if start.before is None:
            state = self.drafter.initial_state(len(start.hidden))
        else:
            embeddings = start.embed(mx.maximum(start.before, 0))
            state = self.drafter.read(embeddings, start.before >= 0)
        hidden = start.hidden
        return self.project_hidden(hidden)[:, None], state.astype(hidden.dtype)[:, None]

    def advance(
        self,
        draft: mx.array,  # noqa: ARG002 - what other heads need
        embeddings: mx.array,
        state: mx.array,
        depth: int,  # noqa: ARG002
    ) -> mx.array:
        """See ``PreparedDrafter.advance``."""
        return self.drafter.advance(embeddings, state)

    def project_hidden(self, hidden: mx.array) -> mx.array:
        """What a hidden state contributes to every level of a draft.

        Args:
            hidden: Target's final hidden state at the last verified position,
                (..., n, hidden_size).

        Returns:
            For :meth:`logits`; ``hidden`` itself where nothing can be computed beforehand.
        """
        return hidden

    def logits(self, draft: mx.array, state: mx.array) -> mx.array:
        """``AnchoredDrafter.logits``, of a hidden state that :meth:`project_hidden` projected.

        Args:
            draft: What it contributes, broadcastable to state but for the last axis.
            state: Shape (..., n, width).

        Returns:
            Shape (..., n, head_size).
        """
        return self.drafter.logits(draft, state)


class PreparedRecurrentDrafter(PreparedAnchoredDrafter):
    """A ``RecurrentDrafter`` whose weights are final, as drafts use it.

    Half of its input projection, if it has one, is copied.
    """

    drafter: RecurrentDrafter

    def __init__(self, drafter: RecurrentDrafter):
        super().__init__(drafter)
        has_projection = drafter.config.has_input_proj
        self._project = _state_projection(drafter.input_proj) if has_projection else None

    def project_hidden(self, hidden: mx.array) -> mx.array:
        """(..., n, exit_dim); ``hidden`` itself where no projection can be halved."""
        if self._project is None:
            return hidden
        alone = mx.concatenate([hidden, mx.zeros_like(hidden)], axis=-1)
        projected: mx.array = self.drafter.input_proj(alone)
        return projected

    def logits(self, draft: mx.array, state: mx.array) -> mx.array:
        """See ``PreparedAnchoredDrafter.logits``."""
        if self._project is None:
            return self.drafter.logits(draft, state)
        return self.drafter.output(self._project(draft, state))


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
