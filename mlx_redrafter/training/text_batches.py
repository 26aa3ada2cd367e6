"""Batches of whole texts, for heads that remember them: every position of a text is an anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from .config import DistillationConfig
from .data import TokenRow
from .features import drawn
from .teacher import Teacher, column_map, draft_tokens, padded_length
from .text_loss import TextBatch, fitted


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
        vocabulary = draft_tokens(drafter)
        self._column_map = column_map(vocabulary, target.vocab_size)
        full = drafter.config.draft_vocab_size is None
        self._tokens = None if full else mx.array(vocabulary)

    @property
    def per_epoch(self) -> float:
        """Passes until each text was seen once."""
        return len(self.groups)

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
        logits, hidden = self.target.teach(given, layers=self.drafter.config.target_layers)
        scores = logits.astype(mx.float32) / config.temperature
        normaliser = mx.logsumexp(scores, axis=-1)
        restricted = scores if self._tokens is None else mx.take(scores, self._tokens, axis=-1)
        labels = np.pad(self._column_map[tokens[:, 1:]], ((0, 0), (0, 1)), constant_values=-1)
        probs, entropy = fitted(restricted, normaliser, mx.array(labels), config.hard_weight)
        return TextBatch(
            hidden=hidden,
            tokens=given,
            probs=probs,
            entropy=entropy,
            best=mx.take(mx.array(self._column_map), mx.argmax(scores, axis=-1)),
            weights=mx.array(_weights(answer, config.unroll)),
        )


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
