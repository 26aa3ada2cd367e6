"""The unrolled distillation loss (ReDrafter, arXiv 2403.09919, sections 3.1 and 3.3)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..drafting.drafter import Drafter
from ..drafting.recurrent_drafter import AnchoredDrafter
from .config import DistillationConfig
from .features import Batch
from .text_loss import TextBatch, text_loss

SMALLEST = 1e-6  # probabilities below it are not told apart; float32 sums to 1 only this well


def unrolled_logits(
    drafter: AnchoredDrafter, hidden: mx.array, embeddings: mx.array, before: mx.array | None = None
) -> mx.array:
    """Draft logits of every step, fed with the actual text.

    Args:
        drafter: The draft head.
        hidden: Target's final hidden states at the anchors, (N, H).
        embeddings: Target's embeddings of the tokens of ``before`` and of the U tokens after each
            anchor, (N, lookback + U, H).
        before: Tokens that stand before those, (N, lookback), -1 where there is none; None is a
            lookback of 0.

    Returns:
        (N, U, head_size); entry k-1 guesses the token after x_{p+k}, from states
        s_k = advance(e(x_{p+k}), s_{k-1}).
    """
    if before is None:
        before = mx.zeros((len(embeddings), 0), dtype=mx.int32)
    return drafter.unroll(hidden, embeddings, before, embeddings.shape[1] - before.shape[1])


def _soft_loss_forward(
    logits: mx.array, columns: mx.array, probs: mx.array, rest: mx.array
) -> tuple[mx.array, mx.array]:
    """(cross-entropy to the teacher, softmax of the logits).

    The draft tokens outside ``columns`` are one event of probability ``rest``. The softmax is
    handed to the gradient, since exponentials are what takes longest on a CPU.
    """
    q = mx.softmax(logits, axis=-1)
    q_kept = mx.take_along_axis(q, columns, axis=-1)
    q_rest = mx.maximum(1 - q_kept.sum(-1), SMALLEST)
    loss = -(probs * mx.log(mx.maximum(q_kept, 1e-30))).sum(-1) - rest * mx.log(q_rest)
    return loss, q


def _soft_loss_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    _, columns, probs, rest = primals
    q = outputs[1]
    # With S the sum of the kept q: d/dz_j = q_j (1 - rest) - p_j on kept j, and for the one event
    # of the others rest * (q_j - q_j / (1 - S)) off them, rest * q_j on them.
    q_kept = mx.take_along_axis(q, columns, axis=-1)
    q_rest = mx.maximum(1 - q_kept.sum(-1), SMALLEST)
    upstream = mx.expand_dims(cotangents[0], -1)
    scale = upstream * mx.expand_dims(1 - rest / q_rest, -1)
    grad = mx.put_along_axis(q * scale, columns, upstream * (q_kept - probs), axis=-1)
    return grad, mx.zeros_like(columns), mx.zeros_like(probs), mx.zeros_like(rest)


_soft_loss: Any = mx.custom_function(_soft_loss_forward)
_soft_loss.vjp(_soft_loss_vjp)


def _targets(batch: Batch, hard_weight: float) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """(columns, probabilities, rest, weight) of the distribution that is fitted at each step.

    The teacher's share weighs as much as its probability of the draft vocabulary: where the target
    wants a token that the head cannot propose there is little to learn. The text's own token, with
    its share ``hard_weight``, takes the last and least likely column if none holds it.
    """
    probs = mx.exp(batch.log_probs)
    if hard_weight == 0:
        return batch.columns, probs, batch.rest, batch.inside
    known = batch.labels >= 0
    held = (batch.columns == batch.labels[..., None]).any(-1)
    replace = known & ~held
    last_column = mx.where(replace, batch.labels, batch.columns[..., -1])
    columns = mx.concatenate([batch.columns[..., :-1], last_column[..., None]], axis=-1)
    last_prob = mx.where(replace, 0, probs[..., -1])
    rest = batch.rest + probs[..., -1] - last_prob
    probs = mx.concatenate([probs[..., :-1], last_prob[..., None]], axis=-1)
    soft = (1 - hard_weight) * batch.inside
    weight = soft + hard_weight * known
    divisor = mx.maximum(weight, SMALLEST)
    hard = hard_weight * (columns == batch.labels[..., None])
    probs = (soft[..., None] * probs + hard) / divisor[..., None]
    return columns, probs, rest * soft / divisor, weight


def _entropy(probs: mx.array, rest: mx.array) -> mx.array:
    terms = mx.where(probs > 0, probs * mx.log(mx.maximum(probs, 1e-30)), 0).sum(-1)
    return -terms - mx.where(rest > 0, rest * mx.log(mx.maximum(rest, SMALLEST)), 0)


def distillation_loss(
    drafter: Drafter, batch: Batch | TextBatch, embeddings: mx.array, config: DistillationConfig
) -> mx.array:
    """Mean Kullback-Leibler divergence of the draft from its targets, in nats; a scalar.

    Draft step k counts ``depth_decay ** (k - 1)``. With ``hard_weight`` 1 it is the cross-entropy
    to the text.

    Args:
        drafter: The draft head.
        batch: N anchors with U steps each; or whole texts.
        embeddings: Target's embeddings of ``batch.fed``, (N, lookback + U, H) float32.
        config: ``hard_weight`` and ``depth_decay`` are read.
    """
    if isinstance(batch, TextBatch):
        return text_loss(drafter, batch, embeddings, config.depth_decay)
    assert isinstance(drafter, AnchoredDrafter)  # others are given texts
    columns, probs, rest, weight = _targets(batch, config.hard_weight)
    logits = unrolled_logits(drafter, batch.hidden, embeddings, batch.before)
    cross_entropy, _ = _soft_loss(logits, columns, probs, rest)
    divergence = cross_entropy - _entropy(probs, rest)
    decay = config.depth_decay ** mx.arange(batch.columns.shape[1])
    counted = batch.weights * decay
    return (divergence * weight * counted).sum() / mx.maximum(counted.sum(), SMALLEST)
