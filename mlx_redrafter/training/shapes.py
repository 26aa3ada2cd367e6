"""Shapes of drafters: the paper's, and the compact one for large vocabularies."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from ..drafting.drafter import Drafter, DrafterConfig, IndependentHeads
from ..drafting.kinds import drafter_of
from ..drafting.shared_head import output_rows, share_rows
from ..errors import RedrafterError
from .teacher import Teacher

ROW_STEP = 32  # the head's rows come in multiples, which matrix kernels like


def draft_vocabulary(counts: np.ndarray, size: int, special: Iterable[int] = ()) -> np.ndarray:
    """Sorted token ids for a head of at most ``size`` rows: (size or fewer,) int32.

    All special tokens are in; then the most frequent ones, lower ids first where counts are equal.
    Tokens that never occur are only taken to round the number up to a multiple of 32.

    Args:
        counts: How often each token is answered, (vocab_size,).
        size: Most rows wanted.
        special: Ids that must be in.

    Raises:
        RedrafterError: If the special tokens alone are more than ``size``.
    """
    forced = np.array(sorted({i for i in special if 0 <= i < len(counts)}), dtype=np.int64)
    if len(forced) > size:
        raise RedrafterError(
            f"A draft vocabulary of {size} cannot hold the {len(forced)} special tokens: "
            "make it larger."
        )
    order = np.argsort(-counts, kind="stable")
    order = np.concatenate([forced, order[~np.isin(order, forced)]])
    seen = len(forced) + int((np.delete(counts, forced) > 0).sum())
    rounded = -(-max(seen, 1) // ROW_STEP) * ROW_STEP
    return np.sort(order[: min(size, rounded, len(counts))]).astype(np.int32)


def _initialised(config: DrafterConfig, seed: int) -> Drafter:
    """A drafter whose weights come from a key of their own; blocks start as the identity."""
    drafter = drafter_of(config)
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
    return drafter


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
    tokens = None
    if draft_vocab_size is not None and draft_vocab_size < target.vocab_size:
        if token_counts is None:
            raise RedrafterError("A draft vocabulary needs token counts: pass those of the data.")
        tokens = draft_vocabulary(token_counts, draft_vocab_size, special)
    narrow = shared_rows or independent_heads is not None
    width = exit_dim or (1 if narrow else 2) * target.hidden_size
    if narrow and width != target.hidden_size:
        raise RedrafterError(
            f"exit_dim is {width}, but shared rows and independent heads are as wide as the "
            f"target's hidden size, {target.hidden_size}: leave exit_dim out."
        )
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        exit_dim=width,
        num_draft_layers=num_draft_layers,
        rnn=rnn,
        draft_vocab_size=None if tokens is None else len(tokens),
        shared_rows=shared_rows,
        independent_heads=independent_heads,
        lookback=lookback,
        target={"name": name, "tokenizer_hash": tokenizer_hash} if name or tokenizer_hash else None,
    )
    drafter = _initialised(config, seed)
    if tokens is not None:
        drafter.draft_tokens = mx.array(tokens)
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
    heads = drafter.heads if isinstance(drafter, IndependentHeads) else [drafter.lm_head]
    for head in heads:
        head[-1].weight = rows
