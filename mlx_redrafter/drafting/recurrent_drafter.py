"""Heads whose drafts start from one hidden state: the paper's recurrent one, and one without.

Parameter names of the recurrent head are those of Apple's checkpoints, so their weights load
unchanged.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .config import DrafterConfig
from .drafter import Drafter, OutputRows


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


class AnchoredDrafter(Drafter):
    """A head that knows the target's hidden state at a draft's anchor, and the tokens fed to it.

    The anchor is the last verified position, whose hidden state goes into every guess; what was fed
    is in a state, of which each beam has its own.
    """

    def initial_state(self, *shape: int) -> mx.array:
        """The state before any token, of shape (*shape, width)."""
        raise NotImplementedError

    def advance(self, embeddings: mx.array, state: mx.array) -> mx.array:
        """Feed one token to each state.

        Args:
            embeddings: Target embeddings of the tokens, shape (..., hidden_size).
            state: States before them, (..., width).

        Returns:
            States after them, (..., width).
        """
        raise NotImplementedError

    def read(self, embeddings: mx.array, known: mx.array) -> mx.array:  # noqa: ARG002 - see below
        """The state after the tokens that stand before the root.

        Args:
            embeddings: Target embeddings of the tokens, oldest first, (N, lookback, hidden_size).
            known: bool (N, lookback), false where the text had not begun yet.

        Returns:
            (N, width); the initial state where nothing is known.
        """
        return self.initial_state(len(embeddings))

    def logits(self, hidden: mx.array, state: mx.array) -> mx.array:
        """Unnormalised log-probabilities of the token that follows each state.

        Args:
            hidden: Target's final hidden state at the last verified position, shape
                (..., hidden_size), broadcastable to state's.
            state: Shape (..., width).

        Returns:
            Shape (..., head_size); column i stands for target token ``target_tokens(i)``.
        """
        raise NotImplementedError

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
        return mx.stack([self.logits(hidden, state) for state in states], axis=1)

    def logits_along(self, hidden: mx.array, embeddings: mx.array, depth: int) -> list[mx.array]:
        """See ``Drafter.logits_along``."""
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


class RecurrentDrafter(AnchoredDrafter):
    """The recurrent draft head: one small state per beam, one distribution per state.

    With h the target's final hidden state at the last verified position and e the target's token
    embedding, the state after the tokens x_1 (the root), x_2, ... is
    ``s_t = silu(W e(x_t) + U s_{t-1} + b)`` (or ``s_t = e(x_t) + s_{t-1}`` where ``rnn`` is false),
    and the next token's logits are ``head([h ; s_t])``. The paper's head (arXiv 2403.09919, section
    3.1) starts from ``s_0 = 0``; with a ``lookback`` s_0 is the state after the so many tokens
    before the root, read from zero in the same way, and the first guess knows as much of the text
    as the later ones.
    """

    def _build(self, config: DrafterConfig) -> None:
        if config.has_input_proj:
            self.input_proj = nn.Linear(2 * config.hidden_size, config.exit_dim)
        self.lm_head = _head(config)
        if config.rnn:
            self.rnn_u = nn.Linear(config.hidden_size, config.hidden_size)
            self.rnn_w = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def initial_state(self, *shape: int) -> mx.array:
        """The state before any token: zeros of shape (*shape, hidden_size), float32."""
        return mx.zeros((*shape, self.config.hidden_size))

    def advance(self, embeddings: mx.array, state: mx.array) -> mx.array:
        """States after one more token each, (..., hidden_size); see ``AnchoredDrafter.advance``."""
        return self._next(self._inputs(embeddings), state)

    def _inputs(self, embeddings: mx.array) -> mx.array:
        return self.rnn_w(embeddings) if self.config.rnn else embeddings

    def _next(self, inputs: mx.array, state: mx.array) -> mx.array:
        if not self.config.rnn:
            return inputs + state
        return _silu_of_sum(inputs, self.rnn_u(state))

    def read(self, embeddings: mx.array, known: mx.array) -> mx.array:
        """See ``AnchoredDrafter.read``."""
        if not self.config.lookback:
            return self.initial_state(len(embeddings))
        inputs = self._inputs(embeddings)  # of all tokens at once: only the states follow in turn
        state = self.initial_state(len(embeddings)).astype(embeddings.dtype)
        for place in range(embeddings.shape[1]):
            state = mx.where(known[:, place, None], self._next(inputs[:, place], state), state)
        return state

    def logits(self, hidden: mx.array, state: mx.array) -> mx.array:
        """See ``AnchoredDrafter.logits``."""
        x = mx.concatenate([mx.broadcast_to(hidden, state.shape), state], axis=-1)
        if self.config.has_input_proj:
            x = self.input_proj(x)
        return self.output(x)

    def output(self, x: mx.array) -> mx.array:
        """Logits of what stands in front of the first block, (..., exit_dim)."""
        return self._output(x, self.lm_head)

    def _logits_of_all(self, hidden: mx.array, states: list[mx.array]) -> mx.array:
        return self.logits(hidden[:, None], mx.stack(states, axis=1))


class IndependentHeads(AnchoredDrafter):
    """One head for each depth, which sees the target's hidden state and no drafted token.

    The paper's ablation of the recurrence, laid out as Medusa's heads are (arXiv 2401.10774): depth
    k's logits are ``head_k(h)``. Its state is a depth, kept in the shape: (..., k) after k tokens.
    Deeper than it has heads, the last one goes on guessing.
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
        """Logits of the state's depth, (..., head_size); see ``AnchoredDrafter.logits``."""
        depth = min(state.shape[-1], len(self.heads))
        x = mx.broadcast_to(hidden, (*state.shape[:-1], self.config.hidden_size))
        return self._output(x, self.heads[depth - 1])


def _head(config: DrafterConfig) -> list[nn.Module]:
    blocks: list[nn.Module] = [
        ResidualBlock(config.exit_dim) for _ in range(config.num_draft_layers)
    ]
    if config.shared_rows:
        return blocks
    return [*blocks, OutputRows(config.exit_dim, config.head_size, bias=False)]
