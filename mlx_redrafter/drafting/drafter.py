"""The recurrent draft head (ReDrafter, arXiv 2403.09919, section 3.1).

Parameter names are those of Apple's checkpoints, so their weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..errors import RedrafterError
from ..ranges import of_kind
from ..system.device import takes_columns
from .config import DrafterConfig


# Each of these is one launch, and where a launch is expensive a draft is made of little else.
@partial(mx.compile, shapeless=True)
def _silu_of_sum(x: mx.array, y: mx.array) -> mx.array:
    total = x + y
    return total * mx.sigmoid(total)


@partial(mx.compile, shapeless=True)
def _plus_silu(x: mx.array, y: mx.array) -> mx.array:
    return x + y * mx.sigmoid(y)


class ResidualBlock(nn.Module):
    """x + silu(linear(x)), shape (..., exit_dim) to the same."""

    def __init__(self, dims: int):
        super().__init__()
        self.linear = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the block to x, shape (..., exit_dim)."""
        return _plus_silu(x, self.linear(x))


class OutputRows(nn.Linear):
    """The head's last matrix, from (..., exit_dim) to (..., head_size)."""

    def __call__(self, x: mx.array) -> mx.array:
        """Multiply x; a single row as a column where that is faster."""
        if x.size == x.shape[-1] and takes_columns(self.weight):
            product: mx.array = self.weight @ x.reshape(-1, 1)
            return product.reshape(*x.shape[:-1], -1)
        return super().__call__(x)


class Drafter(nn.Module):
    """The recurrent draft head: one small state per beam, one distribution per state.

    With h the target's final hidden state at the last verified position and e the target's token
    embedding, the state after the tokens x_1 (the root), x_2, ... is
    ``s_t = silu(W e(x_t) + U s_{t-1} + b)`` (or ``s_t = e(x_t) + s_{t-1}`` where ``rnn`` is false),
    and the next token's logits are ``head([h ; s_t])``. The paper's head starts from ``s_0 = 0``;
    with a ``lookback`` s_0 is the state after the so many tokens before the root, read from zero
    in the same way, and the first guess knows as much of the text as the later ones.

    The embedding is the target's and is passed in as vectors; the drafter owns no copy.
    """

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = of_kind(config, "config", DrafterConfig, "a DrafterConfig")
        self._rows: Callable[[mx.array], mx.array] | None = None
        self._build(config)
        if config.draft_vocab_size is not None:
            # Row i of the head proposes target token draft_tokens[i]; sorted, int32, never trained.
            self.draft_tokens = mx.arange(config.draft_vocab_size, dtype=mx.int32)
            self.freeze(keys=["draft_tokens"], recurse=False)

    def _build(self, config: DrafterConfig) -> None:
        """Make the layers, all but the token map."""
        if config.has_input_proj:
            self.input_proj = nn.Linear(2 * config.hidden_size, config.exit_dim)
        self.lm_head = _head(config)
        if config.rnn:
            self.rnn_u = nn.Linear(config.hidden_size, config.hidden_size)
            self.rnn_w = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    @property
    def remembers(self) -> bool:
        """Whether it looks into a memory of the text, and so reads and learns from whole ones."""
        return self.config.memory_heads is not None

    @property
    def needs_rows(self) -> bool:
        """Whether output rows have to be bound before there are logits."""
        return self.config.shared_rows and self._rows is None

    def bind_rows(self, rows: Callable[[mx.array], mx.array]) -> None:
        """Use output rows that belong to the target, see ``rows.share_rows``.

        Args:
            rows: From (..., exit_dim) to (..., head_size). They are no parameter of the drafter.
        """
        self._rows = rows

    def initial_state(self, *shape: int) -> mx.array:
        """The state before any token: zeros of shape (*shape, hidden_size), float32."""
        return mx.zeros((*shape, self.config.hidden_size))

    def advance(self, embeddings: mx.array, state: mx.array) -> mx.array:
        """Feed one token to each state.

        Args:
            embeddings: Target embeddings of the tokens, shape (..., hidden_size).
            state: States before them, same shape.

        Returns:
            States after them, same shape.
        """
        return self._next(self._inputs(embeddings), state)

    def _inputs(self, embeddings: mx.array) -> mx.array:
        return self.rnn_w(embeddings) if self.config.rnn else embeddings

    def _next(self, inputs: mx.array, state: mx.array) -> mx.array:
        if not self.config.rnn:
            return inputs + state
        return _silu_of_sum(inputs, self.rnn_u(state))

    def read(self, embeddings: mx.array, known: mx.array) -> mx.array:
        """The state after the tokens that stand before the root.

        Args:
            embeddings: Target embeddings of the tokens, oldest first, (N, lookback, hidden_size).
            known: bool (N, lookback), false where the text had not begun yet.

        Returns:
            (N, hidden_size); zeros where nothing is known. With a lookback of 0 the initial state.
        """
        if not self.config.lookback:
            return self.initial_state(len(embeddings))
        inputs = self._inputs(embeddings)  # of all tokens at once: only the states follow in turn
        state = self.initial_state(len(embeddings)).astype(embeddings.dtype)
        for place in range(embeddings.shape[1]):
            state = mx.where(known[:, place, None], self._next(inputs[:, place], state), state)
        return state

    def logits(self, hidden: mx.array, state: mx.array) -> mx.array:
        """Unnormalised log-probabilities of the token that follows each state.

        Args:
            hidden: Target's final hidden state at the last verified position, shape
                (..., hidden_size), broadcastable to state's.
            state: Recurrent state, shape (..., hidden_size).

        Returns:
            Shape (..., head_size); column i stands for target token ``target_tokens(i)``.
        """
        x = mx.concatenate([mx.broadcast_to(hidden, state.shape), state], axis=-1)
        if self.config.has_input_proj:
            x = self.input_proj(x)
        return self.output(x)

    def output(self, x: mx.array) -> mx.array:
        """Logits of what stands in front of the first block, (..., exit_dim)."""
        return self._output(x, self.lm_head)

    def _output(self, x: mx.array, layers: list[nn.Module]) -> mx.array:
        for layer in layers:
            x = layer(x)
        if not self.config.shared_rows:
            return x
        if self._rows is None:
            raise RedrafterError(
                "This drafter shares the target's output rows, and none are bound: open it "
                "together with its target, with mlx_redrafter.load."
            )
        return self._rows(x)

    def unroll(
        self, hidden: mx.array, embeddings: mx.array, before: mx.array, depth: int
    ) -> mx.array:
        """Logits of every guess of drafts that are fed with the actual text; for training.

        Args:
            hidden: Target's final hidden states at the anchors, (N, hidden_size).
            embeddings: Target's embeddings of the tokens of ``before`` and of the ``depth`` tokens
                after each anchor, (N, lookback + depth, hidden_size).
            before: Tokens that stand before those, int (N, lookback), -1 where there is none.
            depth: Guesses of each draft.

        Returns:
            (N, depth, head_size); entry k-1 guesses the token after k tokens from the anchor on.
        """
        lookback = before.shape[1]
        state = self.read(embeddings[:, :lookback], before >= 0)
        states = []
        for k in range(lookback, lookback + depth):
            state = self.advance(embeddings[:, k], state)
            states.append(state)
        return self._logits_of_all(hidden, states)

    def _logits_of_all(self, hidden: mx.array, states: list[mx.array]) -> mx.array:
        """Logits of the states of a draft, (N, depth, head_size)."""
        return self.logits(hidden[:, None], mx.stack(states, axis=1))

    def logits_along(self, hidden: mx.array, embeddings: mx.array, depth: int) -> list[mx.array]:
        """Logits of every guess of drafts from every position of texts, fed with the text.

        Args:
            hidden: What the head reads of the target, (B, T, layers * hidden_size).
            embeddings: Target's embeddings of the texts' tokens, (B, T, hidden_size).
            depth: Guesses from each position.

        Returns:
            For k from 1 to depth (B * T - k, head_size), the texts laid end to end: row i is the
            guess after k tokens of a draft whose last verified token is the i-th. Where these k
            tokens are past the end of its text it means nothing.
        """
        length = embeddings.shape[1]
        hidden = hidden.reshape(-1, hidden.shape[-1])
        embeddings = embeddings.reshape(-1, embeddings.shape[-1])
        places = mx.arange(len(embeddings))[:, None]
        back = mx.arange(1 - self.config.lookback, 1)
        known = places % length + back >= 0
        state = self.read(embeddings[mx.maximum(places + back, 0)], known)
        made = []
        for k in range(1, depth + 1):
            state = self.advance(embeddings[k:], state[:-1])
            made.append(self.logits(hidden[:-k], state))
        return made

    def target_tokens(self, columns: mx.array) -> mx.array:
        """Target token ids of head columns, any shape, int32."""
        if self.config.draft_vocab_size is None:
            return columns.astype(mx.int32)
        return mx.take(self.draft_tokens, columns)

    def draft_columns(self, values: mx.array) -> mx.array:
        """Columns of ``values`` (..., vocab_size) for the head's tokens: (..., head_size)."""
        if self.config.draft_vocab_size is None:
            return values
        return mx.take(values, self.draft_tokens, axis=-1)


class IndependentHeads(Drafter):
    """One head for each depth, which sees the target's hidden state and no drafted token.

    The paper's ablation of the recurrence, laid out as Medusa's heads are (arXiv 2401.10774): depth
    k's logits are ``head_k(h)``. It goes where a Drafter does; its state is a depth, kept in the
    shape: (..., k) after k tokens. Deeper than it has heads, the last one goes on guessing.
    """

    def _build(self, config: DrafterConfig) -> None:
        heads = config.independent_heads or 1
        self.heads = [_head(config) for _ in range(heads)]

    def initial_state(self, *shape: int) -> mx.array:
        """Depth 0, shape (*shape, 0)."""
        return mx.zeros((*shape, 0))

    def advance(self, embeddings: mx.array, state: mx.array) -> mx.array:
        """One depth further, (..., k) to (..., k + 1); the token is not looked at."""
        return mx.zeros((*embeddings.shape[:-1], state.shape[-1] + 1), state.dtype)

    def logits(self, hidden: mx.array, state: mx.array) -> mx.array:
        """Logits of the state's depth, (..., head_size); see ``Drafter.logits``."""
        depth = min(state.shape[-1], len(self.heads))
        x = mx.broadcast_to(hidden, (*state.shape[:-1], self.config.hidden_size))
        return self._output(x, self.heads[depth - 1])

    def _logits_of_all(self, hidden: mx.array, states: list[mx.array]) -> mx.array:
        return mx.stack([self.logits(hidden, state) for state in states], axis=1)


def _head(config: DrafterConfig) -> list[nn.Module]:
    blocks: list[nn.Module] = [
        ResidualBlock(config.exit_dim) for _ in range(config.num_draft_layers)
    ]
    if config.shared_rows:
        return blocks
    return [*blocks, OutputRows(config.exit_dim, config.head_size, bias=False)]
