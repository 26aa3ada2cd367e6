"""What a drafter is worth: along held-out text, and in real decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..drafting.drafter import Drafter
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..engine.statistics import AcceptanceStats
from ..sampling import SamplingConfig
from ..target.target import Target
from .data import TokenRow
from .features import Batch, Features
from .loss import unrolled_logits
from .teacher import Teacher
from .text_batches import TextBatches
from .text_loss import TextBatch, text_ranks


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


def ranks(drafter: Drafter, batch: Batch | TextBatch, embeddings: mx.array) -> mx.array:
    """Number of draft tokens likelier than the target's best, (N, U) int32.

    head_size where the head lacks that token.
    """
    if isinstance(batch, TextBatch):
        return text_ranks(drafter, batch, embeddings)
    logits = unrolled_logits(drafter, batch.hidden, embeddings, batch.before)
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


TEXT_PROMPT = 16  # tokens of a text that begin an answer


@dataclass(frozen=True)
class DecodedFigures:
    """Counts of real decoding.

    Attributes:
        tokens_per_step: Mean tokens of text per target forward.
        acceptance_by_depth: Share of the trials at depth 1, 2, ... that were accepted.
        tokens: Tokens decoded.
        steps: Target forwards.
        prompts: Prompts answered.
    """

    tokens_per_step: float
    acceptance_by_depth: tuple[float, ...]
    tokens: int
    steps: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "acceptance_by_depth": list(self.acceptance_by_depth)}


def prompts_of(
    rows: Sequence[TokenRow], count: int | None = None, text_prompt: int = TEXT_PROMPT
) -> list[list[int]]:
    """Prompts of rows: what stands before the first answer.

    Args:
        rows: Held-out rows; of a row that is all answer, the beginning is the prompt.
        count: Most prompts; rows are taken evenly from all of them.
        text_prompt: Tokens of such a beginning.
    """
    count = len(rows) if count is None else min(count, len(rows))
    prompts = []
    for i in range(count):
        row = rows[i * len(rows) // count]
        first = int(row.answer.argmax())
        if first <= 1:  # a text: at most half of it is given away
            first = max(1, min(text_prompt, len(row.tokens) // 2))
        prompts.append([int(token) for token in row.tokens[:first]])
    return prompts


def measure_decoding(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    beam: BeamShape,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_ids: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DecodedFigures:
    """Answer prompts with the drafter as it stands and count.

    Args:
        target: The target.
        drafter: The draft head; its weights are only read.
        prompts: Token ids.
        beam: Shape of the drafts.
        max_tokens: Longest answer.
        temperature: Of the sampling; 0 is greedy.
        seed: Of the sampling.
        eos_token_ids: Tokens that end an answer.
        progress: Called with (prompts done, prompts in all).
    """
    # A model of its own each time: what it prepares for a drafter may keep weights of the moment.
    model = SpeculativeModel(target, drafter)
    stats = AcceptanceStats()
    config = DecodingConfig(
        max_tokens=max_tokens,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
        beam=beam,
        eos_token_ids=frozenset(eos_token_ids),
    )
    for number, prompt in enumerate(prompts, 1):
        for _ in decode(model, prompt, config, stats=stats):
            pass
        if progress is not None:
            progress(number, len(prompts))
    return DecodedFigures(
        tokens_per_step=stats.tokens_per_step,
        acceptance_by_depth=tuple(stats.acceptance_by_depth),
        tokens=stats.tokens,
        steps=stats.steps,
        prompts=len(prompts),
    )
