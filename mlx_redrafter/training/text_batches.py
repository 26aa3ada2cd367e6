"""Batches of whole texts, for heads that remember them: every position of a text is an anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..drafting.shared_head import output_rows
from ..errors import RedrafterError
from .config import DistillationConfig
from .data import TokenRow
from .features import drawn
from .teacher import Teacher, column_map, draft_tokens, padded_length
from .text_loss import TextBatch, fitted, log_sum_exp

LOGITS_OFF = 0.1  # by which half precision rounds logits, and less than caps and scales do


class TextBatches:
    """Batches for which the target runs over whole rows, each of ``positions_per_step`` tokens.

    A head with a memory reads its text from the first token on, so its anchors cannot be drawn one
    by one: rows of similar length go together, at least one, and all their positions are trained at
    once.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary and the layers that it reads.
        rows: See ``data.tokenize``.
        config: The run.
        keep: Whether what the target makes of a row is kept, so that it runs once over each. What a
            row is taught comes from its final hidden states then.

    Raises:
        RedrafterError: If no row has an answer to learn from.
    """

    def __init__(
        self,
        target: Teacher,
        drafter: Drafter,
        rows: Sequence[TokenRow],
        config: DistillationConfig,
        *,
        keep: bool = False,
    ):
        self.target, self.drafter, self.config = target, drafter, config
        self.rows = _taught(rows)
        if not self.rows:
            raise RedrafterError("The data has no answers to learn from: pass more of it.")
        self.groups = list(_groups(self.rows, config.positions_per_step))
        vocabulary = draft_tokens(drafter)
        self._column_map = column_map(vocabulary, target.vocab_size)
        full = drafter.config.draft_vocab_size is None
        self._tokens = None if full else mx.array(vocabulary)
        self._rows = self._output_rows() if keep else None
        self._kept: dict[int, _Seen] = {}

    def batch(self, index: int) -> TextBatch:
        """Batch ``index`` of the run, the same on every call."""
        (group,) = drawn(len(self.groups), index, 1, self.config.seed)
        return self.of(self.groups[group])

    def all(self) -> Iterator[TextBatch]:
        """Every text once."""
        return (self.of(group) for group in self.groups)

    def of(self, group: slice) -> TextBatch:
        """Some rows, all of their positions."""
        config = self.config
        tokens, answer = _padded(self.rows[group])
        given = mx.array(tokens)
        seen = self._kept.get(group.start) or self._see(given)
        if self._rows is None:
            restricted = self._restricted(seen.scores)
        else:
            restricted = self._from_rows(seen.hidden) / config.temperature
            seen = self._kept[group.start] = seen._replace(scores=None)
            # What is not asked for would hold the logits that it is computed from.
            mx.async_eval(seen.hidden, seen.normaliser, seen.best)
        labels = np.pad(self._column_map[tokens[:, 1:]], ((0, 0), (0, 1)), constant_values=-1)
        probs, entropy = fitted(restricted, seen.normaliser, mx.array(labels), config.hard_weight)
        return TextBatch(
            hidden=seen.hidden,
            tokens=given,
            probs=probs,
            entropy=entropy,
            best=seen.best,
            weights=mx.array(_weights(answer, config.unroll)),
        )

    def _see(self, tokens: mx.array) -> _Seen:
        logits, hidden = self.target.teach(tokens, layers=self.drafter.config.target_layers)
        scores = logits.astype(mx.float32)
        if self.config.temperature != 1:
            scores = scores / self.config.temperature
        best = mx.take(mx.array(self._column_map), mx.argmax(scores, axis=-1))
        return _Seen(hidden, log_sum_exp(scores), best, scores)

    def _restricted(self, scores: mx.array | None) -> mx.array:
        assert scores is not None
        return scores if self._tokens is None else mx.take(scores, self._tokens, axis=-1)

    def _from_rows(self, hidden: mx.array) -> mx.array:
        """Logits of the head's tokens, float32, from hidden states of which the last are final."""
        assert self._rows is not None
        return hidden[..., -self._rows.shape[-1] :].astype(mx.float32) @ self._rows.T

    def _output_rows(self) -> mx.array | None:
        """The target's output rows of the head's tokens; None if its logits are not theirs alone.

        Some models scale or cap what the rows give.
        """
        rows = output_rows(self.target)
        if rows is None:
            return None
        self._rows = rows if self._tokens is None else rows[self._tokens]
        seen = self._see(mx.array(self.rows[0].tokens)[None])
        given = self._restricted(seen.scores) * self.config.temperature
        off = mx.abs(given - self._from_rows(seen.hidden)).max()
        return self._rows if float(np.array(off)) < LOGITS_OFF else None


def passes_over_texts(rows: Sequence[TokenRow], positions: int) -> int:
    """Batches of so many positions until each text was seen once."""
    return len(_groups(_taught(rows), positions))


def _taught(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Rows with something to learn, the shortest first."""
    return sorted((row for row in rows if row.answer[2:].any()), key=lambda row: len(row.tokens))


def kept_bytes_of_texts(target: Teacher, drafter: Drafter, rows: Sequence[TokenRow]) -> int:
    """Bytes that ``TextBatches`` keep of rows."""
    _, hidden = target.teach(mx.zeros((1, 1), dtype=mx.int32))  # shapes only
    width = hidden.shape[-1] * (len(drafter.config.target_layers) + 1)
    return sum(padded_length(len(row.tokens)) for row in rows) * (width * hidden.dtype.size + 8)


class _Seen(NamedTuple):
    """What the target makes of texts (B, T); scores are not kept."""

    hidden: mx.array
    normaliser: mx.array
    best: mx.array
    scores: mx.array | None


def _weights(answer: np.ndarray, unroll: int) -> np.ndarray:
    """1 where draft step k of anchor p guesses an answer, as its first step does, (B * T, unroll).

    Args:
        answer: bool (B, T).
        unroll: Steps.
    """
    length = answer.shape[1]
    later = np.pad(answer, ((0, 0), (0, unroll + 1)))
    guessed = np.stack([later[:, k + 1 : k + 1 + length] for k in range(1, unroll + 1)], axis=-1)
    return (guessed & guessed[..., :1]).reshape(-1, unroll).astype(np.float32)


def _groups(rows: Sequence[TokenRow], budget: int) -> list[slice]:
    """Rows in order of their length, as many as fit the budget when padded to the longest.

    From the longest down: so all groups of a padded length but one hold the same number of rows,
    and a graphics card is given few shapes.
    """
    groups, end = [], len(rows)
    while end > 0:
        fit = max(1, budget // padded_length(len(rows[end - 1].tokens)))
        groups.append(slice(max(0, end - fit), end))
        end -= fit
    return groups[::-1]


def _padded(rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and answers (B, T)."""
    width = padded_length(max(len(row.tokens) for row in rows))
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    answer = np.zeros((len(rows), width), dtype=bool)
    for line, row in enumerate(rows):
        tokens[line, : len(row.tokens)] = row.tokens
        answer[line, : len(row.tokens)] = row.answer
    return tokens, answer
