"""What a drafter's config.json says: the shape of the head, and what it was made for.

Its keys are those of Apple's checkpoints (model_type ``recurrent_drafting_drafter``), and further
ones for what is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import RedrafterError
from ..ranges import shown

MODEL_TYPE = "recurrent_drafting_drafter"
# What to do with one that was given as a model.
AS_DRAFTER = "pass it as --drafter (drafter), with its target as --model"


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

    def __post_init__(self) -> None:
        """Check what shapes the head.

        Raises:
            RedrafterError: If a value is of the wrong kind or out of its range.
        """
        _check(vars(self), "DrafterConfig")

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
        _check(values, "The drafter's config.json")
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


def _check(values: Mapping[str, Any], where: str) -> None:
    """Refuse what shapes no head.

    Raises:
        RedrafterError: Naming the key, and where it stands.
    """

    def require(name: str, good: bool, wanted: str) -> None:
        if not good:
            given = f"{name}={shown(values.get(name))}"
            raise RedrafterError(f"{where} has {given}, but it has to be {wanted}.")

    for name in ("hidden_size", "vocab_size", "exit_dim", "num_draft_layers"):
        minimum = 0 if name == "num_draft_layers" else 1
        require(name, _is_count(values.get(name), minimum), f"at least {minimum}")
    size = values.get("draft_vocab_size")
    fits = size is None or (_is_count(size, 1) and size <= values["vocab_size"])
    require("draft_vocab_size", fits, "1 to vocab_size, or null")
    require("rnn", isinstance(values.get("rnn", False), bool), "true or false")
    for name in ("quantization", "target"):
        good = values.get(name) is None or isinstance(values[name], dict)
        require(name, good, "an object, or null")
    shared = values.get("shared_rows", False)
    fits = isinstance(shared, bool) and (not shared or values["exit_dim"] == values["hidden_size"])
    require("shared_rows", fits, "false, or true with an exit_dim of hidden_size")
    heads = values.get("independent_heads")
    fits = heads is None or (_is_count(heads, 1) and not shared)
    require("independent_heads", fits, "at least 1 without shared_rows, or null")
    lookback = values.get("lookback", 0)
    fits = _is_count(lookback, 0) and (lookback == 0 or heads is None)
    require("lookback", fits, "at least 0, and 0 with independent_heads")
    layers = values.get("target_layers")
    fits = layers is None or isinstance(layers, list | tuple)
    require("target_layers", fits, "a list of layers, or null")
    if values.get("memory_heads") is not None:
        _check_memory(values, require)


def _check_memory(values: Mapping[str, Any], require: Callable[[str, bool, str], None]) -> None:
    for name in ("memory_heads", "memory_head_dim", "memory_window", "state_size", "mlp_size"):
        minimum = 4 if name == "memory_head_dim" else 1
        require(name, _is_count(values.get(name), minimum), f"at least {minimum}")
    layers = values.get("target_layers") or []
    fits = isinstance(layers, list | tuple) and all(_is_count(layer, 0) for layer in layers)
    fits = fits and list(layers) == sorted(set(layers))
    require("target_layers", fits, "layers of the target in ascending order")
    others = ("shared_rows", "independent_heads", "lookback")
    clash = next((name for name in others if values.get(name)), None)
    if clash is not None:
        require(clash, False, "left out where there are memory_heads")
