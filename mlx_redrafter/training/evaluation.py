"""What a drafter is worth, along held-out text and in real decoding, and what it costs to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from ..drafting.drafter import Drafter
from ..drafting.recurrent_drafter import AnchoredDrafter
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
    assert isinstance(drafter, AnchoredDrafter)  # others are given texts
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
        count: Most prompts; they are taken evenly from all rows.
        text_prompt: Tokens of such a beginning.

    Returns:
        Each prompt once, however many rows answer it.
    """
    found = list(dict.fromkeys(_prompt(row, text_prompt) for row in rows))
    count = len(found) if count is None else min(count, len(found))
    return [list(found[i * len(found) // count]) for i in range(count)]


def _prompt(row: TokenRow, text_prompt: int) -> tuple[int, ...]:
    first = int(row.answer.argmax())
    if first <= 1:  # a text: at most half of it is given away
        first = max(1, min(text_prompt, len(row.tokens) // 2))
    return tuple(int(token) for token in row.tokens[:first])


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


@dataclass(frozen=True)
class DraftSizes:
    """Sizes of a drafter and its target.

    Attributes:
        drafter_parameters: Numbers in the drafter, rows that it shares with the target left out.
        drafter_bytes: Of its file.
        bytes_per_drafted_token: Weights read to advance all beams by one token, shared output rows
            included.
        target_parameters: Numbers in the target.
        target_bytes_per_token: Weights that the target reads for one token, in the drafter's
            precision where they are not quantised: all but an input embedding of its own, of which
            it reads a row. Experts are counted whole.
    """

    drafter_parameters: int
    drafter_bytes: int
    bytes_per_drafted_token: int
    target_parameters: int
    target_bytes_per_token: int

    @property
    def share(self) -> float:
        """Bytes of a drafted token per byte of a target's token."""
        return self.bytes_per_drafted_token / max(self.target_bytes_per_token, 1)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "share": self.share}

    def described(self) -> str:
        """They in a sentence."""
        return (
            f"The drafter has {self.drafter_parameters / 1e6:.2f} million parameters and reads "
            f"{self.bytes_per_drafted_token / 1e6:.2f} MB for a drafted token, {self.share:.1%} of "
            f"the {self.target_bytes_per_token / 1e6:.2f} MB that the target reads for a token."
        )


@dataclass(frozen=True)
class TargetSizes:
    """What a target is read for, see ``DraftSizes``.

    Attributes:
        parameters: Numbers in it.
        bytes_per_token: Weights that it reads for one token.
        output_bytes: Of its output rows; 0 where they are no layer of their own.
    """

    parameters: int
    bytes_per_token: int
    output_bytes: int


def target_sizes(target: Teacher, dtype: mx.Dtype | None = None) -> TargetSizes:
    """Sizes of a target as it stands; ``dtype`` is as in :func:`draft_sizes`."""
    module = target.output_head.layer if target.output_head else None
    return TargetSizes(
        parameters=get_total_parameters(target.model),
        bytes_per_token=_target_bytes(target, dtype),
        output_bytes=0 if module is None else _bytes(module, dtype),
    )


def draft_sizes(
    target: Teacher,
    drafter: Drafter,
    dtype: mx.Dtype | None = None,
    *,
    stored: TargetSizes | None = None,
) -> DraftSizes:
    """Sizes of a drafter and its target.

    Args:
        target: The target.
        drafter: The draft head.
        dtype: Of all weights that are not packed; None takes them as they are. Both are counted
            alike, since on a CPU a target is opened in float32 whatever it is stored in.
        stored: Sizes of the target before it was unpacked; by default as it stands.
    """
    stored = target_sizes(target, dtype) if stored is None else stored
    flat = dict(tree_flatten(drafter.parameters()))
    counted = {k: v for k, v in flat.items() if k != "draft_tokens"}
    read = sum(_own_bytes(v, dtype) for v in counted.values())
    read //= drafter.config.independent_heads or 1
    if drafter.config.shared_rows:
        read += stored.output_bytes * drafter.config.head_size // target.vocab_size
    return DraftSizes(
        drafter_parameters=sum(value.size for value in counted.values()),
        drafter_bytes=sum(_own_bytes(value, dtype) for value in flat.values()),
        bytes_per_drafted_token=read,
        target_parameters=stored.parameters,
        target_bytes_per_token=stored.bytes_per_token,
    )


def _own_bytes(value: mx.array, dtype: mx.Dtype | None) -> int:
    if dtype is None or not mx.issubdtype(value.dtype, mx.floating):
        return value.nbytes
    return value.size * dtype.size


def _bytes(module: Any, dtype: mx.Dtype | None) -> int:
    return sum(_own_bytes(value, dtype) for _, value in tree_flatten(module.parameters()))


def _target_bytes(target: Teacher, dtype: mx.Dtype | None) -> int:
    total = _bytes(target.model, dtype)
    if target.output_head is None:
        return total
    output = target.output_head.layer
    # An adapter of the output layer holds that layer.
    read = {id(module) for module in output.modules()} if output is not None else set()
    for _, module in target.model.named_modules():
        is_embedding = isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
        if is_embedding and id(module) not in read:
            total -= _bytes(module, dtype)
    return total
