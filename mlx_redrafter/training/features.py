"""What the target knows at every position, and the batches drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from .config import DistillationConfig
from .text_loss import TextBatch


class Batch(NamedTuple):
    """N anchors with U draft steps each; fixed shapes.

    With p an anchor: ``hidden`` is the target's final hidden state at p, ``tokens[k-1]`` is
    x_{p+k} (the first is the root), and index k-1 of the other arrays belongs to draft step k,
    which guesses x_{p+1+k}; its teacher is the target's distribution at position p + k.

    Attributes:
        hidden: (N, H) float32.
        before: (N, lookback) int32, the tokens up to x_p, -1 where the row had not begun.
        tokens: (N, U) int32 target token ids.
        columns: (N, U, K) int32 head columns of the teacher's likeliest draft tokens.
        log_probs: (N, U, K) float32, the teacher's log-probabilities of them, renormalised over
            the draft vocabulary.
        rest: (N, U) float32, the teacher's probability of all other draft tokens.
        best: (N, U) int32 head column of the target's likeliest token, -1 outside the head.
        labels: (N, U) int32 head column of x_{p+1+k}, -1 outside the head.
        weights: (N, U) float32, 1 where x_{p+1+k} is in the same row's answers, else 0.
        inside: (N, U) float32, the target's probability of the draft vocabulary.
    """

    hidden: mx.array
    before: mx.array
    tokens: mx.array
    columns: mx.array
    log_probs: mx.array
    rest: mx.array
    best: mx.array
    labels: mx.array
    weights: mx.array
    inside: mx.array

    @property
    def fed(self) -> mx.array:
        """All tokens that the drafter reads, (N, lookback + U); any token where there is none."""
        if self.before.shape[1] == 0:
            return self.tokens
        return mx.concatenate([mx.maximum(self.before, 0), self.tokens], axis=1)


class ShardedArray:
    """Arrays laid end to end along their first axis, of which only rows are read.

    Args:
        parts: Arrays that differ in their first dimension at most, on disk for example.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = list(parts)
        self._starts = np.cumsum([0] + [len(part) for part in parts])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(int(part.nbytes) for part in self._parts)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, shape (*rows.shape, ...), in memory."""
        flat = rows.reshape(-1)
        found = np.empty((len(flat), *self.shape[1:]), dtype=self.dtype)
        place = np.searchsorted(self._starts, flat, side="right") - 1
        for number in np.unique(place):
            here = place == number
            found[here] = self._parts[number][flat[here] - self._starts[number]]
        return found.reshape(*rows.shape, *self.shape[1:])


@dataclass(frozen=True, eq=False)
class Features:
    """All rows laid end to end (T tokens), and the target's view of the positions that matter (M).

    Attributes:
        tokens: (T,) int32.
        answer: (T,) bool.
        row_end: (T,) int64, index after the last token of the position's row.
        labels: (T,) int32 head column of each token, -1 where the head lacks it.
        slot: (T,) int32 index into the arrays below, -1 where nothing was kept.
        hidden: (M, H) float16 or float32, final hidden states.
        columns: (M, K) uint16 or int32, see ``Batch``.
        log_probs: (M, K) float16.
        rest: (M,) float32.
        best: (M,) int32.
        inside: (M,) float32.
        head_size: Columns of the draft head that they were made for.
    """

    tokens: np.ndarray
    answer: np.ndarray
    row_end: np.ndarray
    labels: np.ndarray
    slot: np.ndarray
    hidden: np.ndarray | ShardedArray
    columns: np.ndarray | ShardedArray
    log_probs: np.ndarray | ShardedArray
    rest: np.ndarray | ShardedArray
    best: np.ndarray | ShardedArray
    inside: np.ndarray | ShardedArray
    head_size: int

    @property
    def anchors(self) -> np.ndarray:
        """Positions p whose first guess x_{p+2} is an answer token of the same row, (A,) int64."""
        p = np.arange(max(len(self.tokens) - 2, 0))
        return p[self.answer[p + 2] & (p + 2 < self.row_end[p])]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(v.nbytes) for v in vars(self).values() if not isinstance(v, int))

    def batch(self, anchors: np.ndarray, unroll: int, lookback: int = 0) -> Batch:
        """The batch of these anchors (N,), in their order."""
        p = anchors[:, None]
        earlier = p + np.arange(1 - lookback, 1)[None, :]
        same_row = (earlier >= 0) & (self.row_end[np.maximum(earlier, 0)] == self.row_end[p])
        steps = np.arange(1, unroll + 1)[None, :]
        last = len(self.tokens) - 1
        guessed = np.minimum(p + 1 + steps, last)
        counts = (p + 1 + steps < self.row_end[p]) & self.answer[guessed]
        # Where nothing counts, any slot will do: its weight is 0.
        slot = np.where(counts, self.slot[np.minimum(p + steps, last)], 0)
        arrays = (
            self.hidden[self.slot[anchors]].astype(np.float32),
            np.where(same_row, self.tokens[np.maximum(earlier, 0)], -1).astype(np.int32),
            self.tokens[np.minimum(p + steps, last)],
            self.columns[slot].astype(np.int32),
            self.log_probs[slot].astype(np.float32),
            self.rest[slot],
            np.where(counts, self.best[slot], -1),
            np.where(counts, self.labels[guessed], -1),
            counts.astype(np.float32),
            self.inside[slot],
        )
        return Batch(*(mx.array(array) for array in arrays))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def drawn(count: int, start: int, number: int, seed: int) -> np.ndarray:
    """Entries start .. start + number of an endless run of shuffled epochs of range(count).

    A pure function, so that a resumed run sees the data that an uninterrupted one would.
    """
    parts = []
    while number > 0:
        epoch, offset = divmod(start, count)
        part = _order(count, seed, epoch)[offset : offset + number]
        parts.append(part)
        start, number = start + len(part), number - len(part)
    return np.concatenate(parts)


class BatchSource(Protocol):
    """Where training takes its batches from."""

    def batch(self, index: int) -> Batch | TextBatch:
        """Batch ``index`` of the run, the same on every call."""


class CachedBatches:
    """Batches from features of the whole data set: anchors of all rows, mixed.

    Args:
        features: The target's view of the rows.
        config: The run.
        lookback: The drafter's.
    """

    def __init__(self, features: Features, config: DistillationConfig, lookback: int = 0):
        self.features, self.config, self.lookback = features, config, lookback
        self.anchors = features.anchors

    def batch(self, index: int) -> Batch:
        """Batch ``index`` of the run, the same on every call."""
        n = self.config.positions_per_step
        chosen = drawn(len(self.anchors), index * n, n, self.config.seed)
        return self.features.batch(self.anchors[chosen], self.config.unroll, self.lookback)
