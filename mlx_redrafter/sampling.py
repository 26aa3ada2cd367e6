"""Choosing tokens: the argmax of filtered log-probabilities plus noise keyed by position.

Drawing from softmax(l / T) is argmax(l / T + g) with Gumbel noise g. The noise for position i of a
text is made from (seed, i) alone, so what is drawn there does not depend on how the position was
reached, drafted or not (coupling without communication: Daliri, Musco and Suresh, 2024).
Filters and penalties mean what they mean in mlx-lm's ``make_sampler`` and
``make_logits_processors``, and are applied in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from .errors import RedrafterError
from .tree import DraftTree

NOISE_BLOCK = 8


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen; the defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Keep the likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest; 0 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of recent tokens.
        presence_penalty: Subtracted once from the logit of a recent token.
        frequency_penalty: Subtracted from a recent token's logit for each time it occurred.
        repetition_context_size, presence_context_size, frequency_context_size: How many of the
            latest tokens, prompt included, count as recent.
        seed: Names the noise; the same seed gives the same text.
        logit_bias: (token, number) each; added to its logit before anything else.
        logprobs: None for none; else log-probabilities of the chosen tokens are computed, and of so
            many of the likeliest: after bias and penalties, before temperature and filters.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float | None = None
    presence_context_size: int = 20
    frequency_penalty: float | None = None
    frequency_context_size: int = 20
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        finite = 0 <= self.temperature < math.inf
        _check(finite, "temperature", self.temperature, "a finite number, 0 or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        penalty = self.repetition_penalty
        _check(penalty is None or penalty >= 0, "repetition_penalty", penalty, "0 or more")
        finite = all(token >= 0 and math.isfinite(bias) for token, bias in self.logit_bias)
        _check(finite, "logit_bias", self.logit_bias, "finite numbers by token")
        wanted = self.logprobs
        _check(wanted is None or wanted >= 0, "logprobs", wanted, "0 or more")
        for name in ("repetition", "presence", "frequency"):
            size = getattr(self, f"{name}_context_size")
            _check(size >= 1, f"{name}_context_size", size, "1 or more")

    @property
    def penalties(self) -> tuple[tuple[str, float, int], ...]:
        """Those that are on, in mlx-lm's order: (kind, penalty, context size)."""
        entries = (
            ("repetition", self.repetition_penalty, self.repetition_context_size),
            ("presence", self.presence_penalty, self.presence_context_size),
            ("frequency", self.frequency_penalty, self.frequency_context_size),
        )
        return tuple((kind, value, size) for kind, value, size in entries if value)

    @property
    def history_size(self) -> int:
        """How many recent tokens the penalties look at; 0 when none is on."""
        return max((size for _, _, size in self.penalties), default=0)


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise RedrafterError(f"{name} is {value}, but has to be {wanted}.")


def noise_rows(seed: int, first: int, count: int, vocab_size: int) -> mx.array:
    """Gumbel noise for positions first .. first + count - 1, float32 (count, vocab_size).

    Row i depends on (seed, first + i) and nothing else.
    """
    low, high = seed & 0xFFFFFFFF, seed >> 32
    base = mx.random.split(mx.array([high, low], dtype=mx.uint32), 2)[0]
    positions = mx.arange(first, first + count, dtype=mx.uint32)
    # Threefry keys are two words: one stays the seed's, the other takes the position in.
    keys = mx.stack([mx.broadcast_to(base[0], (count,)), base[1] ^ positions], axis=1)
    return mx.vmap(lambda key: mx.random.gumbel((vocab_size,), key=key))(keys)


def scores(
    config: SamplingConfig, logits: mx.array, noise: mx.array | None, *, normalise: bool = True
) -> mx.array:
    """Log-probabilities, filtered, at temperature, plus noise: their argmax is the choice.

    Args:
        config: Temperature and filters.
        logits: (..., vocabulary), after penalties.
        noise: Broadcastable to the logits; None when greedy.
        normalise: False leaves each row wrong by a constant where that changes no choice. It saves
            the exponentials over the vocabulary, which are dear on a CPU.

    Returns:
        Same shape as logits; -inf where a filter removed the token.
    """
    # Top-p takes sums of probabilities. In half precision the subtraction rounds, as mlx-lm's does.
    needed = config.top_p < 1 or logits.dtype != mx.float32
    logprobs = logits
    if normalise or needed:
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if noise is None:
        return logprobs
    if config.top_p < 1:
        logprobs = apply_top_p(logprobs, config.top_p)
    if config.min_p > 0:
        logprobs = apply_min_p(logprobs, config.min_p)
    if 0 < config.top_k < logits.shape[-1]:
        logprobs = apply_top_k(logprobs, config.top_k)
    return logprobs.astype(mx.float32) * (1.0 / config.temperature) + noise


class Choices(NamedTuple):
    """The target's choice after each node of a tree.

    Attributes:
        tokens: int32 (n,).
        flipped_by_noise: Whether the noise made it another than the likeliest token, bool (n,);
            None when greedy.
        logprobs: Log-probabilities of ``tokens``, float32 (n,); None where not asked for.
        top_tokens: The likeliest tokens, in no order, (n, k); None likewise.
        top_logprobs: Theirs, float32 (n, k); None likewise.
    """

    tokens: mx.array
    flipped_by_noise: mx.array | None
    logprobs: mx.array | None = None
    top_tokens: mx.array | None = None
    top_logprobs: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Those that there are, to evaluate."""
        return [array for array in self if array is not None]


class Sampler:
    """Turns logits into choices for one text.

    Args:
        config: What to do.
        vocab_size: Number of logits.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int):
        if config.top_k >= vocab_size:
            raise RedrafterError(
                f"top_k is {config.top_k}, but has to be below the vocabulary's {vocab_size}."
            )
        if any(token >= vocab_size for token, _ in config.logit_bias):
            raise RedrafterError(f"logit_bias names tokens beyond the vocabulary of {vocab_size}.")
        self.config = config
        self._vocab_size = vocab_size
        self._blocks: dict[int, mx.array] = {}

    def noise(self, first: int, count: int) -> mx.array | None:
        """Noise for ``count`` positions from ``first``, (count, vocab_size); None when greedy.

        Rows are made in blocks, each once, and dropped when the text has passed them.
        """
        if self.config.temperature == 0:
            return None
        wanted = range(first // NOISE_BLOCK, (first + count - 1) // NOISE_BLOCK + 1)
        self._blocks = {index: self._block(index) for index in wanted}
        rows = [self._blocks[index] for index in wanted]
        lead = first - wanted[0] * NOISE_BLOCK
        joined = rows[0] if len(rows) == 1 else mx.concatenate(rows)
        return joined[lead : lead + count]

    def _block(self, index: int) -> mx.array:
        if index in self._blocks:
            return self._blocks[index]
        return noise_rows(self.config.seed, index * NOISE_BLOCK, NOISE_BLOCK, self._vocab_size)

    def choose(
        self, logits: mx.array, tree: DraftTree, noise: mx.array | None, recent: Sequence[int]
    ) -> Choices:
        """The target's choice after each node of a tree.

        Args:
            logits: (n, vocab_size).
            tree: The nodes.
            noise: Row d for nodes of depth d, (max_depth + 1, vocab_size); None when greedy.
            recent: Tokens before the root.
        """
        if self.config.logit_bias:
            logits = biased(logits, self.config.logit_bias)
        if self.config.penalties:
            logits = penalise(logits, tree, recent, self.config)
        if noise is not None:
            noise = mx.take(noise, tree.depths, axis=0)
        chosen = scores(self.config, logits, noise, normalise=False)
        tokens = mx.argmax(chosen, axis=-1).astype(mx.int32)
        flipped = None if noise is None else tokens != mx.argmax(logits, axis=-1)
        if self.config.logprobs is None:
            return Choices(tokens, flipped)
        return Choices(tokens, flipped, *_logprobs(logits, tokens, self.config.logprobs))


def _logprobs(
    logits: mx.array, tokens: mx.array, count: int
) -> tuple[mx.array, mx.array | None, mx.array | None]:
    """Log-probabilities of the chosen tokens and of the ``count`` likeliest, in no order."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    count = min(count, logits.shape[-1])
    if not count:
        return chosen, None, None
    top = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    return chosen, top, mx.take_along_axis(logprobs, top, axis=-1)


def biased(logits: mx.array, bias: Sequence[tuple[int, float]]) -> mx.array:
    """Logits (n, vocab_size) with numbers added, as mlx-lm's ``logit_bias`` does."""
    places = mx.array([token for token, _ in bias])
    values = mx.array([value for _, value in bias]).astype(logits.dtype)
    return logits.at[:, places].add(values)


def penalise(
    logits: mx.array, tree: DraftTree, recent: Sequence[int], config: SamplingConfig
) -> mx.array:
    """mlx-lm's penalties, each node's for its own history: prompt, accepted text and ancestors.

    Args:
        logits: (n, vocab_size).
        tree: The n nodes.
        recent: Tokens before the root.
        config: Which penalties.

    Returns:
        Penalised logits, (n, vocab_size).
    """
    size = config.history_size
    recent = list(recent[-(size - 1) :]) if size > 1 else []
    # Pad in front so that the root stands in column size - 1.
    padding = size - 1 - len(recent)
    before = mx.array([0] * padding + recent, dtype=mx.int32)
    before = mx.broadcast_to(before[None], (len(tree), size - 1))
    line = mx.concatenate([before, tree.path_tokens()], axis=1)
    columns = tree.depths[:, None] + mx.arange(size)[None, :]
    history = mx.take_along_axis(line, columns, axis=1)
    real = columns >= padding
    # Padding repeats the node's own token, which is in the history anyway.
    history = mx.where(real, history, tree.tokens[:, None])
    for kind, penalty, context in config.penalties:
        logits = _penalise(logits, history[:, -context:], real[:, -context:], kind, penalty)
    return logits


def _penalise(
    logits: mx.array, history: mx.array, real: mx.array, kind: str, penalty: float
) -> mx.array:
    if kind == "frequency":
        rows = mx.arange(logits.shape[0])[:, None]
        return logits.at[rows, history].subtract(penalty * real.astype(logits.dtype))
    picked = mx.take_along_axis(logits, history, axis=1)
    if kind == "repetition":
        picked = mx.where(picked < 0, picked * penalty, picked / penalty)
    else:
        picked = picked - penalty
    return mx.put_along_axis(logits, history, picked, axis=1)
