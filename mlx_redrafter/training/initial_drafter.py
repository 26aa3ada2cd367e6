"""The drafter that a run begins with: a new one, or one that exists, for another target or data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from ..drafting.config import DrafterConfig
from ..drafting.drafter import Drafter
from ..drafting.kinds import drafter_of
from ..drafting.memory_drafter import MemoryDrafter
from ..drafting.recurrent_drafter import IndependentHeads, RecurrentDrafter
from ..drafting.shared_head import output_rows, share_rows
from ..errors import RedrafterError
from ..target.target import Target
from ..text.drafter_files import check_pair, load_drafter, tokenizer_hash
from ..text.loading import resolve_path
from .data import TokenRow, special_tokens, token_counts
from .options import TrainingOptions
from .teacher import Teacher
from .vocabulary import draft_rows

AnyDrafter = TypeVar("AnyDrafter", bound=Drafter)

LARGEST_STATE = 1024


def _initialised(drafter: AnyDrafter, tokens: np.ndarray | None, seed: int) -> AnyDrafter:
    """The drafter with weights from a key of their own; blocks start as the identity.

    Args:
        drafter: As it was made.
        tokens: Its draft vocabulary; None for all tokens.
        seed: Of the weights.
    """
    key = mx.random.key(seed)

    def draw(path: str, value: mx.array) -> mx.array:
        nonlocal key
        in_block = ".linear." in path
        if path == "draft_tokens":
            return value
        if value.ndim == 1 or in_block:
            return mx.zeros(value.shape)
        key, used = mx.random.split(key)
        return mx.random.normal(value.shape, key=used) * value.shape[1] ** -0.5

    drafter.update(tree_map_with_path(draw, drafter.parameters()))
    if tokens is not None:
        drafter.draft_tokens = mx.array(tokens)
    return drafter


@dataclass(frozen=True)
class MemoryShape:
    """Shape of a head with a memory of the text, see ``MemoryDrafter``.

    None stands for what a target of that size is given by default.

    Attributes:
        target_layers: Layers read besides the final hidden state, from 0; None: an early one and
            one from the middle.
        state_size: Width of the recurrent state; None: the target's hidden size, 1024 at most.
        mlp_size: Width of the gated layer; None: half the state's.
        exit_dim: Width in front of the output rows; None: a third of the state's, 128 at least.
        heads: Attention heads of the memory.
        head_dim: Width of each.
        window: Tokens that a draft sees of the text.
    """

    target_layers: tuple[int, ...] | None = None
    state_size: int | None = None
    mlp_size: int | None = None
    exit_dim: int | None = None
    heads: int = 4
    head_dim: int = 48
    window: int = 1024

    def entries(self, hidden_size: int, num_layers: int) -> dict[str, Any]:
        """The configuration's keys, for a target of that size."""
        state = self.state_size or min(hidden_size, LARGEST_STATE)
        layers = self.target_layers
        if layers is None:
            layers = tuple(sorted({min(2, num_layers - 1), (num_layers - 1) // 2}))
        return {
            "target_layers": layers,
            "state_size": state,
            "mlp_size": self.mlp_size or max(1, state // 2),
            "exit_dim": self.exit_dim or max(128, state // 24 * 8),
            "memory_heads": self.heads,
            "memory_head_dim": self.head_dim,
            "memory_window": self.window,
        }


def make_memory_drafter(
    target: Target,
    token_counts: np.ndarray | None = None,
    *,
    shape: MemoryShape | None = None,
    draft_vocab_size: int | None = None,
    special: Iterable[int] = (),
    name: str = "",
    tokenizer_hash: str = "",
    seed: int = 0,
) -> MemoryDrafter:
    """A new, untrained head with a memory of the text, float32.

    Args:
        target: Read only.
        token_counts: See ``make_drafter``, as are the arguments below that it has.
        shape: Its shape.
        draft_vocab_size: Most output rows.
        special: Token ids that must be in the draft vocabulary.
        name: Of the target.
        tokenizer_hash: Of the target.
        seed: Of the weights.

    Raises:
        RedrafterError: As ``make_drafter``, or if the target's layers cannot be read.
    """
    tokens = draft_rows(target, token_counts, draft_vocab_size, special)
    entries = (shape or MemoryShape()).entries(target.hidden_size, len(target.model.layers))
    config = DrafterConfig.from_dict(
        {
            "hidden_size": target.hidden_size,
            "vocab_size": target.vocab_size,
            "num_draft_layers": 1,
            "rnn": True,
            "draft_vocab_size": None if tokens is None else len(tokens),
            "target": _made_for(name, tokenizer_hash),
            **entries,
        }
    )
    target.check_layers(config.target_layers)
    drafter = _initialised(MemoryDrafter(config), tokens, seed)
    # What the memory and the gated layer add begins as nothing.
    for layer in (drafter.recall, drafter.down):
        layer.weight = mx.zeros_like(layer.weight)
    rows = output_rows(target)
    if rows is not None:
        rows = rows if tokens is None else rows[mx.array(tokens)]
        drafter.lm_head[0].weight = _principal(rows, config.exit_dim)
    mx.eval(drafter.parameters())
    return drafter


def _principal(rows: mx.array, rank: int) -> mx.array:
    """Rows (n, width) in their ``rank`` widest directions, (n, rank), of variance 1 / rank."""
    wide = np.array(rows, dtype=np.float64)
    _, directions = np.linalg.eigh(wide.T @ wide)
    narrow = np.zeros((len(wide), rank))
    found = wide @ directions[:, ::-1][:, :rank]
    narrow[:, : found.shape[1]] = found
    return mx.array((narrow / narrow.std() * rank**-0.5).astype(np.float32))


def head_width(exit_dim: int | None, hidden_size: int, *, narrow: bool) -> int:
    """Width of a head without a memory; of a ``narrow`` one the rows are the target's, or the heads
    independent.

    Raises:
        RedrafterError: If a narrow head is to have another width than the target.
    """
    width = exit_dim or (1 if narrow else 2) * hidden_size
    if narrow and width != hidden_size:
        raise RedrafterError(
            f"exit_dim is {width}, but shared rows and independent heads are as wide as the "
            f"target's hidden size, {hidden_size}: leave exit_dim out."
        )
    return width


def _made_for(name: str, tokenizer_hash: str) -> dict[str, Any] | None:
    return {"name": name, "tokenizer_hash": tokenizer_hash} if name or tokenizer_hash else None


def make_drafter(
    target: Teacher,
    token_counts: np.ndarray | None = None,
    *,
    exit_dim: int | None = None,
    num_draft_layers: int = 2,
    rnn: bool = True,
    draft_vocab_size: int | None = None,
    special: Iterable[int] = (),
    shared_rows: bool = False,
    independent_heads: int | None = None,
    lookback: int = 0,
    name: str = "",
    tokenizer_hash: str = "",
    seed: int = 0,
) -> Drafter:
    """A new, untrained drafter for ``target``, float32.

    Args:
        target: Read only.
        token_counts: (vocab_size,), needed with ``draft_vocab_size``.
        exit_dim: Width of the head. None is the paper's 2 x hidden_size; hidden_size is the compact
            shape, whose output rows start as the target's.
        num_draft_layers: Residual blocks.
        rnn: Whether the state is gated.
        draft_vocab_size: Most rows of the head, see ``draft_vocabulary``; None for all tokens.
        special: Token ids that must be in the draft vocabulary.
        shared_rows: Use the target's own output rows; the head is then as wide as the target.
        independent_heads: So many heads without recurrence instead, each as wide as the target.
        lookback: Tokens before the root that the state reads first.
        name: Of the target, recorded in the config.
        tokenizer_hash: Of the target, recorded in the config.
        seed: Of the weights.

    Raises:
        RedrafterError: If a draft vocabulary is wanted and no counts are given, or it is too small.
    """
    tokens = draft_rows(target, token_counts, draft_vocab_size, special)
    narrow = shared_rows or independent_heads is not None
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        exit_dim=head_width(exit_dim, target.hidden_size, narrow=narrow),
        num_draft_layers=num_draft_layers,
        rnn=rnn,
        draft_vocab_size=None if tokens is None else len(tokens),
        shared_rows=shared_rows,
        independent_heads=independent_heads,
        lookback=lookback,
        target=_made_for(name, tokenizer_hash),
    )
    drafter = _initialised(drafter_of(config), tokens, seed)
    _set_rows(drafter, target)
    mx.eval(drafter.parameters())
    return drafter


def _set_rows(drafter: Drafter, target: Teacher) -> None:
    """Share the target's output rows, or start from them where the widths agree."""
    if drafter.config.shared_rows:
        share_rows(drafter, target)
        return
    rows = output_rows(target) if drafter.config.exit_dim == target.hidden_size else None
    if rows is None:
        return
    if drafter.config.draft_vocab_size is not None:
        rows = rows[drafter.draft_tokens]
    if isinstance(drafter, IndependentHeads):
        heads = drafter.heads
    else:
        assert isinstance(drafter, RecurrentDrafter)
        heads = [drafter.lm_head]
    for head in heads:
        head[-1].weight = rows


def first_drafter(
    options: TrainingOptions,
    target: Target,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    name: str,
) -> Drafter:
    """The drafter that a run begins with: a new one, or one to continue from.

    Args:
        options: Of the run.
        target: What it drafts for.
        tokenizer: The target's.
        rows: Whose tokens are counted for the draft vocabulary.
        name: Of the target.

    Raises:
        RedrafterError: If the options do not fit the target, or the drafter to continue from.
    """
    if options.start_from is not None:
        return drafter_to_go_on_from(
            options.start_from, target, tokenizer, unroll=options.unroll,
            lookback=options.lookback, name=name,
        )  # fmt: skip
    counts = token_counts(rows, target.vocab_size)
    if options.memory:
        shape = MemoryShape(
            options.layers, options.state_size, options.mlp_size, options.exit_dim,
            options.memory_heads, options.memory_head_dim, options.memory_window,
        )  # fmt: skip
        return make_memory_drafter(
            target,
            counts,
            shape=shape,
            draft_vocab_size=options.draft_vocab_size,
            special=special_tokens(tokenizer),
            name=name,
            tokenizer_hash=tokenizer_hash(tokenizer),
            seed=options.seed,
        )
    return make_drafter(
        target,
        counts,
        exit_dim=options.exit_dim,
        num_draft_layers=options.num_draft_layers,
        rnn=options.rnn,
        draft_vocab_size=options.draft_vocab_size,
        special=special_tokens(tokenizer),
        shared_rows=options.shared_rows,
        independent_heads=options.unroll if options.independent else None,
        lookback=options.lookback or 0,
        name=name,
        tokenizer_hash=tokenizer_hash(tokenizer),
        seed=options.seed,
    )


def drafter_to_go_on_from(
    path_or_repo: str,
    target: Target,
    tokenizer: Any,
    *,
    unroll: int,
    lookback: int | None = None,
    name: str,
) -> Drafter:
    """Load a drafter's weights, float32, to be trained on for ``target``.

    Args:
        path_or_repo: The drafter's directory or Hub repo.
        target: What it is to draft for.
        tokenizer: The target's.
        unroll: Draft steps that will be fitted.
        lookback: Tokens that its state is to read before the root from now on; None leaves it.
        name: Of the target, recorded in the drafter's config.

    Raises:
        RedrafterError: If it is none, does not fit the target, is quantised, or has fewer heads
            than ``unroll``.
    """
    drafter = load_drafter(resolve_path(path_or_repo))
    check_pair(drafter.config, target, tokenizer)
    if drafter.config.quantization is not None:
        raise RedrafterError(
            f"{path_or_repo} is a quantised drafter, which cannot be trained: start from the one "
            "it was made of, and quantise the result."
        )
    heads = drafter.config.independent_heads
    if heads is not None and heads < unroll:
        raise RedrafterError(
            f"{path_or_repo} has {heads} independent heads: pass --unroll {heads} or less."
        )
    if lookback and (heads is not None or drafter.remembers):
        why = "has independent heads, which read" if heads else "remembers the text, so it reads"
        raise RedrafterError(f"{path_or_repo} {why} no tokens first: leave out lookback.")
    made_for = {"name": name, "tokenizer_hash": tokenizer_hash(tokenizer)}
    lookback = drafter.config.lookback if lookback is None else lookback
    drafter.config = replace(drafter.config, target=made_for, lookback=lookback)
    drafter.set_dtype(mx.float32)
    if drafter.needs_rows:
        share_rows(drafter, target)
    drafter.train()
    mx.eval(drafter.parameters())
    return drafter
