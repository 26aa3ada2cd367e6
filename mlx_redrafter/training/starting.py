"""Going on from a drafter that exists: for a target quantised or tuned since, or other data."""

from __future__ import annotations

import hashlib
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
