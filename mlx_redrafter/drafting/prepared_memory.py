"""A head with a memory, laid out for drafts."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .memory_drafter import ROTARY_BASE, MemoryDrafter, MemoryView, normalised
from .prepared_drafter import DraftStart, PreparedDrafter


class _Draft(NamedTuple):
    """What stays the same for a whole draft.

    Attributes:
        keys: (batch, heads, rows, head_dim).
        values: Same shape.
        mask: See ``MemoryView``.
        cosines: Of the positions of each depth, (depths, batch, 1, 1, head_dim); 1 where nothing
            is turned.
        sines: Same shape; with the sign that each column's partner has, 0 where nothing is turned.
    """

    keys: mx.array
    values: mx.array
    mask: mx.array | None
    cosines: mx.array
    sines: mx.array


class PreparedMemoryDrafter(PreparedDrafter):
    """A ``MemoryDrafter`` whose weights are final, as drafts use it.

    Queries are turned by tables that are made once a draft: on a CPU turning them is a dozen small
    operations, which would be as many at every level.
    """

    drafter: MemoryDrafter

    def __init__(self, drafter: MemoryDrafter):
        super().__init__(drafter)
        config = drafter.config
        dim, turned = config.memory_head_dim or 0, config.rotary_dim
        half = turned // 2
        places = [*range(half, turned), *range(half), *range(turned, dim)]
        self._partner = mx.array(places, dtype=mx.int32)
        rates = [ROTARY_BASE ** (-2 * i / turned) for i in range(half)]
        self._rates = mx.array([*rates, *rates, *[0.0] * (dim - turned)])
        self._signs = mx.array([*[-1.0] * half, *[1.0] * half, *[0.0] * (dim - turned)])
        mx.eval(self._partner, self._rates, self._signs)

    @property
    def memory_head(self) -> MemoryDrafter:
        """This head, its layers bound."""
        return self.drafter

    def begin(self, start: DraftStart) -> tuple[_Draft, mx.array]:
        """See ``PreparedDrafter.begin``; ``hidden`` are fused hidden states."""
        memory, hidden = start.memory, start.hidden
        assert memory is not None
        positions = memory.position + mx.arange(start.length, dtype=mx.int32)[:, None]
        angles = positions.astype(mx.float32)[..., None, None, None] * self._rates
        cosines, sines = mx.cos(angles), mx.sin(angles) * self._signs
        kind = hidden.dtype
        draft = _Draft(
            memory.keys, memory.values, memory.mask, cosines.astype(kind), sines.astype(kind)
        )
        return draft, hidden[:, None]

    def advance(self, draft: _Draft, embeddings: mx.array, state: mx.array, depth: int) -> mx.array:
        """See ``PreparedDrafter.advance``."""
        head = self.drafter
        x = head.rnn_w(normalised(embeddings)) + head.rnn_u(normalised(state))
        asked = head.query(normalised(x))
        asked = asked.reshape(*asked.shape[:2], -1, draft.keys.shape[-1])
        partner = mx.take(asked, self._partner, axis=-1)
        query = asked * draft.cosines[depth] + partner * draft.sines[depth]
        view = MemoryView(draft.keys, draft.values, draft.mask, draft.cosines)
        x = x + head.recall(head.attend(query.transpose(0, 2, 1, 3), view))
        return head.after_memory(x)

    def logits(self, draft: _Draft, state: mx.array) -> mx.array:  # noqa: ARG002
        """See ``PreparedDrafter.logits``."""
        return self.drafter.logits_of(state)
