"""Shapes of drafters: the paper's, and the compact one for large vocabularies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from ..drafter import Drafter, DrafterConfig
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


def output_rows(target: Teacher) -> mx.array | None:
    """The target's output rows (vocab_size, hidden_size) as float32, dequantised.

    Taken from ``lm_head``, else from the input embedding that stands in for it; None where the
    model has neither under a known shape.
    """
    found: dict[str, Any] = {}
    for name, module in target.model.named_modules():
        rows = getattr(module, "weight", None)
        if rows is None or rows.ndim != 2 or rows.shape[0] != target.vocab_size:
            continue
        kind = "lm_head" if name.endswith("lm_head") else ""
        if not kind and isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            kind = "embedding"
        found.setdefault(kind, module)
    module = found.get("lm_head", found.get("embedding"))
    if module is None:
        return None
    rows = module.weight
    if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        rows = mx.dequantize(
            rows,
            module.scales,
            module.get("biases"),
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
    return rows.astype(mx.float32) if rows.shape[1] == target.hidden_size else None


def _initialised(config: DrafterConfig, seed: int) -> Drafter:
    """A drafter whose weights come from a key of their own; blocks start as the identity."""
    drafter = Drafter(config)
    key = mx.random.key(seed)

    def draw(path: str, value: mx.array) -> mx.array:
        nonlocal key
        in_block = path.startswith("lm_head") and ".linear." in path
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
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        exit_dim=exit_dim or 2 * target.hidden_size,
        num_draft_layers=num_draft_layers,
        rnn=rnn,
        draft_vocab_size=None if tokens is None else len(tokens),
        target={"name": name, "tokenizer_hash": tokenizer_hash} if name or tokenizer_hash else None,
    )
    drafter = _initialised(config, seed)
    if tokens is not None:
        drafter.draft_tokens = mx.array(tokens)
    rows = output_rows(target) if config.exit_dim == target.hidden_size else None
    if rows is not None:
        drafter.lm_head[-1].weight = rows if tokens is None else rows[drafter.draft_tokens]
    mx.eval(drafter.parameters())
    return drafter
