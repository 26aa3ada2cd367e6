"""A recurrent draft head that knows the text: three of the target's layers, and a memory.

The paper's head (arXiv 2403.09919) sees one hidden state and the drafted tokens. This one starts
from hidden states of several layers, fused as EAGLE-3 does it (arXiv 2503.01840), and each of its
states looks into a memory of the verified text: for every token a key from the target's hidden
states there, and a value that also says which token came next. It stays recurrent: a beam carries
one vector, and the memory is the same for all beams of a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .config import DrafterConfig
from .drafter import Drafter, OutputRows

EPSILON = 1e-5
ROTARY_BASE = 10000.0


class MemoryRows(NamedTuple):
    """What a memory keeps of n tokens, (batch, heads, n, head_dim) each; see ``TextMemory``."""

    keys: mx.array
    values: mx.array
    token_values: mx.array


class MemoryView(NamedTuple):
    """What a draft sees of the verified text.

    Attributes:
        keys: (batch, heads, rows, head_dim), turned at their positions.
        values: Same shape, each with the token value of the token after it.
        mask: bool (batch, 1, 1, rows), false for rows that are none; None where all are.
        position: Position of the draft's root, int32 (batch,).
    """

    keys: mx.array
    values: mx.array
    mask: mx.array | None
    position: mx.array


def together(views: Sequence[MemoryView]) -> MemoryView:
    """The views of several texts, each of a batch of one, as one batch."""
    count = max(view.keys.shape[2] for view in views)
    padded = [_padded(view, count) for view in views]
    keys, values, masks, positions = (list(part) for part in zip(*padded, strict=True))
    return MemoryView(*(mx.concatenate(part) for part in (keys, values, masks, positions)))


def _padded(view: MemoryView, count: int) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    rows = view.keys.shape[2]
    mask = mx.ones((1, 1, 1, rows), dtype=mx.bool_) if view.mask is None else view.mask
    if rows == count:
        return view.keys, view.values, mask, view.position
    room = [(0, 0), (0, 0), (0, count - rows), (0, 0)]
    mask = mx.concatenate([mask, mx.zeros((1, 1, 1, count - rows), dtype=mx.bool_)], axis=-1)
    return mx.pad(view.keys, room), mx.pad(view.values, room), mask, view.position


def normalised(x: mx.array) -> mx.array:
    """x over its root mean square along the last axis."""
    return mx.fast.rms_norm(x, None, EPSILON)


class MemoryDrafter(Drafter):
    """The recurrent head with fused hidden states and a memory of the text.

    With f the fused hidden states at the last verified position, s_0 = f, and for the tokens
    x_1 (the root), x_2, ...:

        x  = W n(e(x_t)) + U n(s_{t-1}) + b
        x += O attention(Q n(x), memory)
        s_t = x + D (silu(G n(x)) * (V n(x)))

    and the next token's logits are ``rows(P n(s_t))``, where n divides by the root mean square. The
    first half of each query and key is turned by its position.
    """

    def _build(self, config: DrafterConfig) -> None:
        hidden, size, inner = config.hidden_size, config.state_size, config.memory_size
        assert size is not None
        assert config.mlp_size is not None
        self.fuse = nn.Linear(config.num_hidden_states * hidden, size, bias=False)
        self.rnn_w = nn.Linear(hidden, size, bias=False)
        self.rnn_u = nn.Linear(size, size)
        self.query = nn.Linear(size, inner, bias=False)
        self.key = nn.Linear(size, inner, bias=False)
        self.value = nn.Linear(size, inner, bias=False)
        self.token_value = nn.Linear(hidden, inner, bias=False)
        self.recall = nn.Linear(inner, size, bias=False)
        self.gate_up = nn.Linear(size, 2 * config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, size, bias=False)
        self.exit = nn.Linear(size, config.exit_dim, bias=False)
        self.lm_head = [OutputRows(config.exit_dim, config.head_size, bias=False)]

    def fused(self, hidden: mx.array) -> mx.array:
        """The state in front of a root: (..., layers * hidden_size) to (..., state_size)."""
        parts = hidden.reshape(*hidden.shape[:-1], -1, self.config.hidden_size)
        fused: mx.array = self.fuse(normalised(parts).reshape(hidden.shape))
        return fused

    def remembered(
        self, states: mx.array, embeddings: mx.array, positions: mx.array | int
    ) -> MemoryRows:
        """What a memory keeps of tokens.

        Args:
            states: Their fused hidden states, (batch, n, state_size).
            embeddings: The target's embeddings of them, (batch, n, hidden_size).
            positions: Of each, int32 (batch, n); or of the first, the others following.
        """
        x = normalised(states)
        return MemoryRows(
            self._turned(self._heads(self.key(x)), positions),
            self._heads(self.value(x)),
            self.token_values(embeddings),
        )

    def token_values(self, embeddings: mx.array) -> mx.array:
        """What a memory keeps of tokens alone, (batch, n, hidden_size) to heads."""
        return self._heads(self.token_value(normalised(embeddings)))

    def _heads(self, x: mx.array) -> mx.array:
        """(batch, n, memory_size) to (batch, heads, n, head_dim)."""
        heads = self.config.memory_heads
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def _turned(self, x: mx.array, positions: mx.array | int) -> mx.array:
        """Turn the first half of (batch, heads, n, head_dim) by the positions of its rows."""
        if isinstance(positions, int):
            return self._rope(x, positions)
        batch, heads, n, dim = x.shape
        rows = x.transpose(0, 2, 1, 3).reshape(batch * n, heads, 1, dim)
        turned = self._rope(rows, positions.reshape(-1))
        return turned.reshape(batch, n, heads, dim).transpose(0, 2, 1, 3)

    def _rope(self, x: mx.array, offset: mx.array | int) -> mx.array:
        return mx.fast.rope(
            x,
            self.config.rotary_dim,
            traditional=False,
            base=ROTARY_BASE,
            scale=1.0,
            offset=offset,
        )

    def attend(self, query: mx.array, view: MemoryView, *, causal: bool = False) -> mx.array:
        """What queries (batch, heads, m, head_dim) find, (batch, m, memory_size)."""
        mask = "causal" if causal else view.mask
        found = mx.fast.scaled_dot_product_attention(
            query, view.keys, view.values, scale=query.shape[-1] ** -0.5, mask=mask
        )
        return found.transpose(0, 2, 1, 3).reshape(query.shape[0], query.shape[2], -1)

    def after_memory(self, x: mx.array) -> mx.array:
        """The gated layer and the sum around it, (..., state_size) to the same."""
        gate, up = mx.split(self.gate_up(normalised(x)), 2, axis=-1)
        after: mx.array = x + self.down(gate * mx.sigmoid(gate) * up)
        return after

    def logits_of(self, state: mx.array) -> mx.array:
        """Unnormalised log-probabilities of the next token, (..., state_size) to head_size."""
        return self._output(self.exit(normalised(state)), self.lm_head)

    def logits_along(self, hidden: mx.array, embeddings: mx.array, depth: int) -> list[mx.array]:
        """See ``Drafter.logits_along``; a draft sees all of the text before it."""
        states = self._states_along(hidden, embeddings, depth)
        flat = [state.reshape(-1, state.shape[-1]) for state in states]
        return [self.logits_of(state[:-k]) for k, state in enumerate(flat, 1)]

    def _states_along(self, hidden: mx.array, embeddings: mx.array, depth: int) -> list[mx.array]:
        """For k from 1 to depth (batch, T, state_size), the state after k tokens from each one."""
        states = self.fused(hidden)
        rows = self.remembered(states, embeddings, 0)
        following = _later(rows.token_values.transpose(0, 2, 1, 3), 1).transpose(0, 2, 1, 3)
        view = MemoryView(rows.keys, rows.values + following, None, mx.array([0]))
        fed = self.rnn_w(normalised(embeddings))
        made = []
        for k in range(1, depth + 1):
            x = _later(fed, k) + self.rnn_u(normalised(states))
            query = self._rope(self._heads(self.query(normalised(x))), k)
            x = x + self.recall(self.attend(query, view, causal=True))
            states = self.after_memory(x)
            made.append(states)
        return made


def _later(x: mx.array, k: int) -> mx.array:
    """Entry (b, t) is entry (b, t + k) of x (batch, T, ...); anything past a text's end."""
    flat = x.reshape(-1, *x.shape[2:])  # so that nothing is laid out again
    return mx.concatenate([flat[k:], flat[:k]]).reshape(x.shape)
