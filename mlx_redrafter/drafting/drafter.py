"""The recurrent draft head (ReDrafter, arXiv 2403.09919, section 3.1).

Parameter names and config keys are those of Apple's checkpoints
(model_type ``recurrent_drafting_drafter``), so their weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import RedrafterError
from ..system.device import takes_columns

MODEL_TYPE = "recurrent_drafting_drafter"


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a drafter and what it was made for.

    Attributes:
        hidden_size: Width of the target's hidden state and token embeddings.
        vocab_size: Size of the target's vocabulary.
        exit_dim: Width of the residual blocks; Apple's trainer uses 2 x hidden_size.
        num_draft_layers: Number of residual SiLU blocks before the output rows.
        rnn: Whether the state is gated, silu(W e + U s), or a plain sum, e + s.
        draft_vocab_size: Number of tokens the head can propose; None means all of them.
        quantization: mlx-lm's quantisation entry ({"group_size", "bits", ...} and per-layer
            overrides), or None for full precision.
        target: What the drafter was trained for: {"name", "tokenizer_hash"}, empty if unknown.
        shared_rows: Whether the output rows are the target's own, and so not among the weights.
        independent_heads: Number of heads, one for each depth, that see the hidden state alone;
            None for the recurrent head.
        lookback: Tokens before the root that the state has read when it comes to the root; 0 is the
            paper's head, which begins with the root.
        memory_heads: Attention heads that look into a memory of the text, see ``MemoryDrafter``;
            None for the heads without one. The keys below belong to it, and only to it.
        memory_head_dim: Width of each.
        memory_window: Tokens that a draft sees of the text, the last ones.
        state_size: Width of the recurrent state.
        mlp_size: Width of the gated layer after the memory.
        target_layers: Layers of the target (from 0) whose outputs are read besides the final hidden
            state, ascending.
    """

    hidden_size: int
    vocab_size: int
    exit_dim: int
    num_draft_layers: int
    rnn: bool = True
    draft_vocab_size: int | None = None
    quantization: dict[str, Any] | None = None
    target: dict[str, Any] | None = None
    shared_rows: bool = False
    independent_heads: int | None = None
    lookback: int = 0
    memory_heads: int | None = None
    memory_head_dim: int | None = None
    memory_window: int | None = None
    state_size: int | None = None
    mlp_size: int | None = None
    target_layers: tuple[int, ...] = ()
    model_type: str = MODEL_TYPE

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DrafterConfig:
        """Read a config.json, ignoring keys that do not shape the head.

        Raises:
            RedrafterError: If a key is missing, of the wrong kind, or the type is another model's.
        """
        kind = values.get("model_type", MODEL_TYPE)
        if kind != MODEL_TYPE:
            raise RedrafterError(
                f"This is a '{kind}' model, not a drafter ('{MODEL_TYPE}'): "
                "pass a directory with a recurrent drafter."
            )
        for name in ("hidden_size", "vocab_size", "exit_dim", "num_draft_layers"):
            minimum = 0 if name == "num_draft_layers" else 1
            _require(values, name, _is_count(values.get(name), minimum), f"at least {minimum}")
        size = values.get("draft_vocab_size")
        fits = size is None or (_is_count(size, 1) and size <= values["vocab_size"])
        _require(values, "draft_vocab_size", fits, "1 to vocab_size, or null")
        _require(values, "rnn", isinstance(values.get("rnn", False), bool), "true or false")
        for name in ("quantization", "target"):
            good = values.get(name) is None or isinstance(values[name], dict)
            _require(values, name, good, "an object, or null")
        shared = values.get("shared_rows", False)
        fits = isinstance(shared, bool) and (
            not shared or values["exit_dim"] == values["hidden_size"]
        )
        _require(values, "shared_rows", fits, "false, or true with an exit_dim of hidden_size")
        heads = values.get("independent_heads")
        fits = heads is None or (_is_count(heads, 1) and not shared)
        _require(values, "independent_heads", fits, "at least 1 without shared_rows, or null")
        lookback = values.get("lookback", 0)
        fits = _is_count(lookback, 0) and (lookback == 0 or heads is None)
        _require(values, "lookback", fits, "at least 0, and 0 with independent_heads")
        if values.get("memory_heads") is not None:
            _check_memory(values)
        known = {field.name for field in fields(cls)}
        given = {k: v for k, v in values.items() if k in known}
        given["target_layers"] = tuple(values.get("target_layers") or ())
        # Apple's configuration class takes an absent `rnn` for false.
        return cls(**{"rnn": False, **given})

    def to_dict(self) -> dict[str, Any]:
        """The config.json entry, without keys that are None or say what is usual."""
        entry = {k: v for k, v in asdict(self).items() if v is not None}
        for name in ("shared_rows", "lookback", "target_layers"):
            if not entry[name]:
                del entry[name]
        return entry

    @property
    def has_input_proj(self) -> bool:
        """Whether [hidden ; state] is projected to exit_dim first."""
        return self.exit_dim != 2 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Number of output rows."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def num_hidden_states(self) -> int:
        """Hidden states of the target that are read at a position."""
        return len(self.target_layers) + 1

    @property
    def memory_size(self) -> int:
        """Width of all memory heads together."""
        return (self.memory_heads or 0) * (self.memory_head_dim or 0)

    @property
    def rotary_dim(self) -> int:
        """Width of what is turned by its position in each memory head: half of it, even."""
        return (self.memory_head_dim or 0) // 4 * 2


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _require(values: dict[str, Any], name: str, good: bool, wanted: str) -> None:
    if not good:
        raise RedrafterError(
            f"The drafter's config.json has {name}={values.get(name)!r}, but it has to be {wanted}."
        )


def _check_memory(values: dict[str, Any]) -> None:
    for name in ("memory_heads", "memory_head_dim", "memory_window", "state_size", "mlp_size"):
        minimum = 4 if name == "memory_head_dim" else 1
        _require(values, name, _is_count(values.get(name), minimum), f"at least {minimum}")
    layers = values.get("target_layers") or []
    fits = isinstance(layers, list | tuple) and all(_is_count(layer, 0) for layer in layers)
    fits = fits and list(layers) == sorted(set(layers))
    _require(values, "target_layers", fits, "layers of the target in ascending order")
    others = ("shared_rows", "independent_heads", "lookback")
    clash = next((name for name in others if values.get(name)), None)
    if clash is not None:
        _require(values, clash, False, "left out where there are memory_heads")


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
        self.config = config
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


def _head(config: DrafterConfig) -> list[nn.Module]:
    blocks: list[nn.Module] = [
        ResidualBlock(config.exit_dim) for _ in range(config.num_draft_layers)
    ]
    if config.shared_rows:
        return blocks
    return [*blocks, OutputRows(config.exit_dim, config.head_size, bias=False)]
