"""The unrolled distillation loss along whole texts, with the whole of the target's distributions.

All positions of a text are anchors, so the teacher of draft step k is the table of the text's
distributions moved by k: nothing is gathered for a step, and no part of a distribution is left out.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..system.device import on_gpu

SMALLEST = 1e-30  # no logarithm of zero


class TextBatch(NamedTuple):
    """B whole texts of T tokens, padded; every position is an anchor of U draft steps.

    With p an anchor, draft step k guesses token p + 1 + k, taught by the distribution at p + k.

    Attributes:
        hidden: (B, T, layers * H), the target's hidden states.
        tokens: (B, T) int32 target token ids.
        probs: (B, T, head_size) float32, what is fitted at each position: the target's
            probabilities of the head's tokens, which sum to less than 1 where the head lacks some.
        entropy: (B, T) float32, the least that the loss can be there, nats.
        best: (B, T) int32 head column of the target's likeliest token, -1 outside the head.
        weights: (B * T, U) float32, 1 where token p + 1 + k is in the text's answers, else 0.
    """

    hidden: mx.array
    tokens: mx.array
    probs: mx.array
    entropy: mx.array
    best: mx.array
    weights: mx.array

    @property
    def fed(self) -> mx.array:
        """All tokens that the drafter reads, (B, T)."""
        return self.tokens


def fitted(
    logits: mx.array, normaliser: mx.array, labels: mx.array, hard_weight: float
) -> tuple[mx.array, mx.array]:
    """(probabilities that are fitted, their entropy), see ``TextBatch``.

    Args:
        logits: The target's of the head's tokens, (B, T, head_size) float32.
        normaliser: log-sum-exp of the target's over its whole vocabulary, (B, T) float32.
        labels: Head column of the next token, -1 where the head lacks it, (B, T) int32.
        hard_weight: Share of the text's own tokens.
    """
    logs = logits - normaliser[..., None]
    probs = exponentials(logs)
    if hard_weight > 0:
        hard = hard_weight * (labels >= 0).astype(mx.float32)[..., None]
        columns = mx.maximum(labels, 0)[..., None]
        probs = (1 - hard_weight) * probs
        own = mx.take_along_axis(probs, columns, axis=-1) + hard
        probs = mx.put_along_axis(probs, columns, own, axis=-1)
        logs = mx.log(mx.maximum(probs, SMALLEST))
    mass = probs.sum(-1)
    return probs, mass * mx.log(mx.maximum(mass, SMALLEST)) - (probs * logs).sum(-1)


def _cross_entropy_forward(
    logits: mx.array, probs: mx.array, mass: mx.array
) -> tuple[mx.array, mx.array]:
    """(cross-entropy of N rows to ``probs`` (N,), softmax of the logits for the gradient)."""
    made = softmax(logits)
    normaliser = mx.max(logits, axis=-1) - mx.log(mx.max(made, axis=-1))
    return mass * normaliser - (probs * logits).sum(-1), made


def _slope(made: mx.array, probs: mx.array, mass: mx.array, upstream: mx.array) -> mx.array:
    return (made * mass[:, None] - probs) * upstream[:, None]


@cache
def _fused_slope() -> Any:
    """One kernel on a GPU, where each pass over the logits counts."""
    return mx.compile(_slope, shapeless=True)


def _cross_entropy_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    _, probs, mass = primals
    slope = _fused_slope() if on_gpu() else _slope
    grad = slope(outputs[1], probs, mass, cotangents[0])
    return grad, mx.zeros_like(probs), mx.zeros_like(mass)


_cross_entropy: Any = mx.custom_function(_cross_entropy_forward)
_cross_entropy.vjp(_cross_entropy_vjp)


def text_loss(
    drafter: Drafter, batch: TextBatch, embeddings: mx.array, depth_decay: float
) -> mx.array:
    """Mean Kullback-Leibler divergence of the draft from what is fitted, in nats; a scalar.

    Args:
        drafter: A head that remembers the text.
        batch: Whole texts.
        embeddings: Target's embeddings of ``batch.fed``, (B, T, H) float32.
        depth_decay: Draft step k counts this to the power k - 1.
    """
    probs = batch.probs.reshape(-1, batch.probs.shape[-1])
    mass, entropy = probs.sum(-1), batch.entropy.reshape(-1)
    depth = batch.weights.shape[-1]
    weights = batch.weights * depth_decay ** mx.arange(depth)
    total = mx.array(0.0)
    for k, logits in enumerate(text_logits(drafter, batch, embeddings), 1):
        cross_entropy, _ = _cross_entropy(logits, probs[k:], mass[k:])
        total = total + ((cross_entropy - entropy[k:]) * weights[: len(logits), k - 1]).sum()
    return total / mx.maximum(weights.sum(), 1e-6)


def text_logits(drafter: Drafter, batch: TextBatch, embeddings: mx.array) -> list[mx.array]:
    """Draft logits of every step k, (B * T - k, head_size): row i is what anchor i guesses.

    The distribution that it is fitted to is row i + k of the texts' positions laid end to end. The
    k last anchors have none and are left out.
    """
    depth = batch.weights.shape[-1]
    return drafter.logits_along(batch.hidden.astype(mx.float32), embeddings, depth)


def text_ranks(drafter: Drafter, batch: TextBatch, embeddings: mx.array) -> mx.array:
    """Number of draft tokens likelier than the target's best, (B * T, U) int32.

    head_size where the head lacks that token, or past the last text's end.
    """
    best, size = batch.best.reshape(-1), batch.probs.shape[-1]
    ranks = []
    for k, logits in enumerate(text_logits(drafter, batch, embeddings), 1):
        wanted = best[k:]
        chosen = mx.take_along_axis(logits, mx.maximum(wanted, 0)[:, None], axis=-1)
        above = mx.where(wanted >= 0, (logits > chosen).sum(-1).astype(mx.int32), size)
        ranks.append(mx.concatenate([above, mx.full((k,), size, dtype=mx.int32)]))
    return mx.stack(ranks, axis=1)


# Exponentials of many numbers: mlx's on a GPU, NumPy's on a CPU.


def exponentials(x: mx.array) -> mx.array:
    """e to the power of each number, float32; on a CPU the graph behind ``x`` is evaluated.

    There mlx takes exponentials one by one, about 20 ns each (x86, 0.32), NumPy many at a time.
    Over the logits of a training step they would take as long as half of its products.
    """
    return mx.exp(x) if on_gpu() else mx.array(np.exp(np.array(x, copy=False)))


def softmax(logits: mx.array) -> mx.array:
    """Softmax along the last axis of float32 logits."""
    if on_gpu():
        return mx.softmax(logits, axis=-1)
    raised = exponentials(logits - mx.max(logits, axis=-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_sum_exp(logits: mx.array) -> mx.array:
    """Logarithm of the sum of exponentials along the last axis of float32 logits."""
    if on_gpu():
        return mx.logsumexp(logits, axis=-1)
    top = mx.max(logits, axis=-1, keepdims=True)
    return (top + mx.log(exponentials(logits - top).sum(-1, keepdims=True)))[..., 0]
