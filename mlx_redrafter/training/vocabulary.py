"""Which tokens a head has output rows for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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


def draft_rows(
    target: Teacher,
    token_counts: np.ndarray | None,
    size: int | None,
    special: Iterable[int],
) -> np.ndarray | None:
    """The draft vocabulary; None for all tokens."""
    if size is None or size >= target.vocab_size:
        return None
    if token_counts is None:
        raise RedrafterError("A draft vocabulary needs token counts: pass those of the data.")
    return draft_vocabulary(token_counts, size, special)
