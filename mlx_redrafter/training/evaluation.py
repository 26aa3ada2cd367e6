"""How often the drafter's guesses are the target's, along the actual text."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from .features import Batch, Features
from .loss import batch_logits
from .teacher import Teacher
from .text_batches import TextBatches


@dataclass(frozen=True)
class Agreement:
    """Shares of draft steps at each depth, index 0 = depth 1.

    Attributes:
        top1: The drafter's likeliest token is the target's likeliest.
        top5: The target's likeliest token is among the drafter's five likeliest.
        chain: Mean tokens per step of one greedy chain: 1 + agreeing steps before the first that
            does not, over the anchors with answers at all depths. On texts that the target wrote
            greedily this is about what decoding reaches with beam width 1.
        positions: Anchors measured.
    """

    top1: tuple[float, ...]
    top5: tuple[float, ...]
    chain: float
    positions: int


def ranks(drafter: Drafter, batch: Batch, embeddings: mx.array) -> mx.array:
    """Number of draft tokens likelier than the target's best, (N, U) int32.

    head_size where the head lacks that token.
    """
    logits = batch_logits(drafter, batch, embeddings)
    chosen = mx.take_along_axis(logits, mx.maximum(batch.best, 0)[..., None], axis=-1)
    above = (logits > chosen).sum(-1).astype(mx.int32)
    return mx.where(batch.best >= 0, above, logits.shape[-1])


def summarize(rank: np.ndarray, counted: np.ndarray) -> Agreement:
    """Agreement from ranks (N, U) where ``counted`` (N, U) is true."""
    number = np.maximum(counted.sum(0), 1)
    top1 = ((rank == 0) & counted).sum(0) / number
    top5 = ((rank < 5) & counted).sum(0) / number
    whole = rank[counted.all(1)]
    chain = 1 + float(np.cumprod(whole == 0, axis=1).sum(1).mean()) if len(whole) else 1.0
    return Agreement(
        top1=tuple(float(x) for x in top1),
        top5=tuple(float(x) for x in top5),
        chain=chain,
        positions=len(rank),
    )


def evaluate(
    target: Teacher,
    drafter: Drafter,
    features: Features | TextBatches,
    *,
    unroll: int = 5,
    positions: int = 4096,
    chunk: int = 512,
    seed: int = 0,
) -> Agreement:
    """Agreement on at most ``positions`` anchors of ``features``, drawn from ``seed``.

    Args:
        target: For its embeddings.
        drafter: The draft head.
        features: Of held-out rows, made for this drafter's vocabulary; or batches of them, which
            are all measured, to the depth that they have.
        unroll: Depths measured.
        positions: Most anchors.
        chunk: Anchors in one pass.
        seed: Of the choice of anchors.
    """
    if isinstance(features, TextBatches):
        return _evaluate_texts(target, drafter, features)
    anchors = np.random.default_rng(seed).permutation(features.anchors)[:positions]
    rank, counted = [], []
    for start in range(0, len(anchors), chunk):
        batch = features.batch(anchors[start : start + chunk], unroll, drafter.config.lookback)
        rank.append(np.array(ranks(drafter, batch, target.embed(batch.fed).astype(mx.float32))))
        counted.append(np.array(batch.weights) > 0)
    if not rank:
        return summarize(np.zeros((0, unroll)), np.zeros((0, unroll), dtype=bool))
    return summarize(np.concatenate(rank), np.concatenate(counted))


def _evaluate_texts(target: Teacher, drafter: Drafter, texts: TextBatches) -> Agreement:
    rank, counted = [], []
    for batch in texts.all():
        counts = np.array(batch.weights) > 0
        taught = counts.any(1)  # a text's prompt is read, but nothing is guessed in it
        found = np.array(ranks(drafter, batch, target.embed(batch.fed).astype(mx.float32)))
        rank.append(found[taught])
        counted.append(counts[taught])
    return summarize(np.concatenate(rank), np.concatenate(counted))
