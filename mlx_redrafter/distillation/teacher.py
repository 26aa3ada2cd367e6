"""One forward pass of the target over whole rows gives the teacher of every draft step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..drafter import Drafter
from ..errors import RedrafterError
from .config import DistillationConfig
from .data import TokenRow
from .features import Features

LENGTH_STEP = 16  # rows are padded to a multiple, so that few shapes occur
SMALLEST_PROBABILITY = 1e-9  # its logarithm fits float16 with room
MAX_LOGITS = 2**26  # elements of one forward pass's logits


class Teacher(Protocol):
    """What is asked of the target, see ``target.Target``."""

    model: Any
    hidden_size: int
    vocab_size: int

    def embed(self, tokens: mx.array) -> mx.array:
        """Embeddings (..., H) of token ids (...)."""

    def teach(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """(logits (B, T, V), final hidden states (B, T, H)) of a plain causal pass over (B, T)."""


def draft_tokens(drafter: Drafter) -> np.ndarray:
    """Target tokens of the head's columns, (head_size,) int32."""
    return np.array(drafter.target_tokens(mx.arange(drafter.config.head_size)))


def _column_map(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Head column of each target token, -1 for none, (vocab_size,) int32."""
    columns = np.full(vocab_size, -1, dtype=np.int32)
    columns[tokens] = np.arange(len(tokens), dtype=np.int32)
    return columns


def _needed(answer: np.ndarray) -> np.ndarray:
    """Positions that teach an answer token or from which its first guess is made."""
    needed = np.zeros(len(answer), dtype=bool)
    needed[:-1] = answer[1:]
    needed[:-2] |= answer[2:]
    return needed


def _batches(lengths: np.ndarray, batch_tokens: int, vocab_size: int) -> Iterator[np.ndarray]:
    """Row numbers of similar length, each group within the two memory bounds."""
    order = np.argsort(lengths, kind="stable")
    budget = max(1, min(batch_tokens, MAX_LOGITS // vocab_size))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end - start + 1) * _padded(lengths[order[end]]) <= budget:
            end += 1
        yield order[start:end]
        start = end


def _padded(length: int) -> int:
    return -(-int(length) // LENGTH_STEP) * LENGTH_STEP


def _restrict(
    logits: mx.array, tokens: mx.array | None, top_k: int
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Teacher of M positions: (columns (M, K), log_probs (M, K), rest (M,), inside (M,)).

    Args:
        logits: (M, V) float32, divided by the temperature.
        tokens: The head's target tokens, None for all.
        top_k: K.
    """
    # One softmax serves all of it: exponentials are what takes longest on a CPU.
    probs = mx.softmax(logits, axis=-1)
    inside = mx.ones(probs.shape[:1])
    if tokens is not None:
        probs = mx.take(probs, tokens, axis=-1)
        inside = probs.sum(-1)
    head_size = probs.shape[-1]
    columns = mx.argpartition(probs, kth=head_size - top_k, axis=-1)[:, head_size - top_k :]
    values = mx.take_along_axis(probs, columns, axis=-1)
    order = mx.argsort(-values, axis=-1)
    columns = mx.take_along_axis(columns, order, axis=-1)
    values = mx.take_along_axis(values, order, axis=-1) / mx.maximum(inside, 1e-30)[:, None]
    log_probs = mx.log(mx.maximum(values, SMALLEST_PROBABILITY))
    rest = mx.zeros_like(inside) if top_k == head_size else mx.maximum(1 - values.sum(-1), 0)
    return columns, log_probs, rest, inside


def _kept_arrays(
    count: int, hidden_size: int, top_k: int, head_size: int, dtype: Any
) -> dict[str, np.ndarray]:
    return {
        "hidden": np.empty((count, hidden_size), dtype=dtype),
        "columns": np.empty((count, top_k), dtype=np.uint16 if head_size <= 2**16 else np.int32),
        "log_probs": np.empty((count, top_k), dtype=np.float16),
        "rest": np.empty(count, dtype=np.float32),
        "best": np.empty(count, dtype=np.int32),
        "inside": np.empty(count, dtype=np.float32),
    }


def compute_features(
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
    *,
    dtype: Any = np.float16,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run the target once over all rows and keep what training reads.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary; only read.
        rows: See ``data.tokenize``.
        config: ``top_k``, ``temperature`` and ``batch_tokens`` are read.
        dtype: NumPy type in which hidden states are kept.
        progress: Called with (rows done, rows in all) after each forward pass.

    Returns:
        About ``2 * hidden_size + 4 * top_k`` bytes a position with float16.

    Raises:
        RedrafterError: If the hidden states do not fit ``dtype``.
    """
    vocabulary = draft_tokens(drafter)
    head_size = len(vocabulary)
    top_k = min(config.top_k, head_size)
    to_column = _column_map(vocabulary, target.vocab_size)
    restricted = None if drafter.config.draft_vocab_size is None else mx.array(vocabulary)
    lengths = np.array([len(row.tokens) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    needed = np.concatenate([_needed(row.answer) for row in rows])
    slot = np.where(needed, np.cumsum(needed) - 1, -1).astype(np.int32)
    kept = _kept_arrays(int(needed.sum()), target.hidden_size, top_k, head_size, dtype)
    done = 0
    for group in _batches(lengths, config.batch_tokens, target.vocab_size):
        width = _padded(lengths[group].max())
        padded = np.zeros((len(group), width), dtype=np.int32)
        where, into = [], []
        for line, i in enumerate(group):
            padded[line, : lengths[i]] = rows[i].tokens
            places = np.flatnonzero(needed[starts[i] : starts[i + 1]])
            where.append(line * width + places)
            into.append(slot[starts[i] + places])
        logits, hidden = target.teach(mx.array(padded))
        chosen, at = mx.array(np.concatenate(where)), np.concatenate(into)
        scores = mx.take(logits.reshape(-1, logits.shape[-1]), chosen, axis=0)
        scores = scores.astype(mx.float32)
        best = mx.argmax(scores, axis=-1)
        teacher = _restrict(scores / config.temperature, restricted, top_k)
        states = mx.take(hidden.reshape(-1, hidden.shape[-1]), chosen, axis=0)
        states = states.astype(mx.float32)
        mx.eval(best, states, *teacher)
        with np.errstate(over="ignore"):
            kept["hidden"][at] = np.array(states)
        kept["best"][at] = to_column[np.array(best)]
        for name, value in zip(("columns", "log_probs", "rest", "inside"), teacher, strict=True):
            kept[name][at] = np.array(value)
        done += len(group)
        if progress is not None:
            progress(done, len(rows))
    if not np.isfinite(kept["hidden"]).all():
        raise RedrafterError(
            f"The target's hidden states do not fit {np.dtype(dtype).name}: "
            "keep the features as float32, or check the target if that fails too."
        )
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int32)
    return Features(
        tokens=tokens,
        answer=np.concatenate([row.answer for row in rows]),
        row_end=np.repeat(starts[1:], lengths),
        labels=to_column[tokens],
        slot=slot,
        **kept,
    )
