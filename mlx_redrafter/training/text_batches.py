"""Batches of whole texts, for heads that remember them: every position of a text is an anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from .config import DistillationConfig
from .data import TokenRow
from .features import Batch, drawn
from .teacher import Teacher, column_map, draft_tokens, padded_length, restrict


class TextBatches:
    """Batches for which the target runs over whole rows, each of ``positions_per_step`` tokens.

    A head with a memory reads its text from the first token on, so its anchors cannot be drawn one
    by one: rows of similar length go together, at least one, and all their positions are trained at
    once. What the target makes of them is used at once and not kept.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary and the layers that it reads.
        rows: See ``data.tokenize``.
        config: The run.

    Raises:
        RedrafterError: If no row has an answer to learn from.
    """

    def __init__(
        self,
        target: Teacher,
        drafter: Drafter,
        rows: Sequence[TokenRow],
        config: DistillationConfig,
    ):
        self.target, self.drafter, self.config = target, drafter, config
        self.rows = sorted(
            (row for row in rows if row.answer[2:].any()), key=lambda row: len(row.tokens)
        )
        if not self.rows:
            raise RedrafterError("The data has no answers to learn from: pass more of it.")
        self.groups = list(_groups(self.rows, config.positions_per_step))
        self._column_map = column_map(draft_tokens(drafter), target.vocab_size)
        head = drafter.config
        self._tokens = None if head.draft_vocab_size is None else mx.array(draft_tokens(drafter))
        self._top_k = min(config.top_k, head.head_size)

    @property
    def per_epoch(self) -> float:
        """Passes until each text was seen once."""
        return len(self.groups)

    def batch(self, index: int) -> Batch:
        """Batch ``index`` of the run, the same on every call."""
        (group,) = drawn(len(self.groups), index, 1, self.config.seed)
        return self.of(self.groups[group])

    def all(self) -> Iterator[Batch]:
        """Every text once."""
        return (self.of(group) for group in self.groups)

    def of(self, group: slice) -> Batch:
        """All anchors of some rows, a row after the other: B rows of T - unroll - 1 each."""
        rows, unroll = self.rows[group], self.config.unroll
        tokens, answer = _padded(rows, unroll)
        given = mx.array(tokens)
        logits, hidden = self.target.teach(given, layers=self.drafter.config.target_layers)
        anchors = tokens.shape[1] - unroll - 1
        at = np.arange(anchors)[:, None] + np.arange(1, unroll + 1)  # the teacher's position
        columns, log_probs, rest, best, inside = (
            array[:, mx.array(at)].reshape(-1, unroll, *array.shape[2:])
            for array in self._teacher(logits)
        )
        guessed = np.where(answer, self._column_map[tokens], -1)[:, at + 1]
        counts = answer[:, at + 1] & answer[:, 2 : anchors + 2, None]
        flat = (-1, unroll)
        return Batch(
            hidden=hidden.astype(mx.float32),
            before=mx.zeros((len(rows) * anchors, 0), dtype=mx.int32),
            tokens=given,
            columns=columns,
            log_probs=log_probs,
            rest=rest,
            best=best,
            labels=mx.array(guessed.reshape(flat).astype(np.int32)),
            weights=mx.array(counts.reshape(flat).astype(np.float32)),
            inside=inside,
        )

    def _teacher(self, logits: mx.array) -> tuple[mx.array, ...]:
        """Columns, log-probabilities, rest, best and inside of each position, (B, T, ...)."""
        flat = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
        best = mx.take(mx.array(self._column_map), mx.argmax(flat, axis=-1))
        found = restrict(flat / self.config.temperature, self._tokens, self._top_k)
        columns, log_probs, rest, inside = found
        shape = logits.shape[:2]
        return tuple(
            array.reshape(*shape, *array.shape[1:])
            for array in (columns.astype(mx.int32), log_probs, rest, best, inside)
        )


def _groups(rows: Sequence[TokenRow], budget: int) -> Iterator[slice]:
    """Rows in order of their length, as many as fit the budget when padded to the longest."""
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows):
            if (end + 1 - start) * padded_length(len(rows[end].tokens)) > budget:
                break
            end += 1
        yield slice(start, end)
        start = end


def _padded(rows: Sequence[TokenRow], unroll: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and answers (B, T), with room for a draft from every token of every row."""
    width = padded_length(max(len(row.tokens) for row in rows) + unroll - 1)
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    answer = np.zeros((len(rows), width), dtype=bool)
    for line, row in enumerate(rows):
        tokens[line, : len(row.tokens)] = row.tokens
        answer[line, : len(row.tokens)] = row.answer
    return tokens, answer
