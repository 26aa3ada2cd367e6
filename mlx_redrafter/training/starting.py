"""The drafter that a run begins with: a new one, or one that exists, for another target or data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..drafting.drafter import Drafter
from ..drafting.memory_drafter import MemoryDrafter
from ..drafting.shared_head import share_rows
from ..errors import RedrafterError
from ..target.target import Target
from ..text.loading import WEIGHTS_FILE, check_pair, load_drafter, resolve_path, tokenizer_hash
from .data import TokenRow, special_tokens, token_counts
from .options import TrainingOptions
from .shapes import MemoryShape, make_drafter, make_memory_drafter


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
    if heads is not None and lookback:
        raise RedrafterError(
            f"{path_or_repo} has independent heads, which read no tokens: leave out lookback."
        )
    if isinstance(drafter, MemoryDrafter) and lookback:
        raise RedrafterError(
            f"{path_or_repo} remembers the text, so it reads no tokens first: leave out lookback."
        )
    made_for = {"name": name, "tokenizer_hash": tokenizer_hash(tokenizer)}
    lookback = drafter.config.lookback if lookback is None else lookback
    drafter.config = replace(drafter.config, target=made_for, lookback=lookback)
    drafter.set_dtype(mx.float32)
    if drafter.needs_rows:
        share_rows(drafter, target)
    drafter.train()
    mx.eval(drafter.parameters())
    return drafter


def weights_hash(path_or_repo: str) -> str:
    """SHA-256 of a drafter's weight file."""
    path = Path(resolve_path(path_or_repo)) / WEIGHTS_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest()
