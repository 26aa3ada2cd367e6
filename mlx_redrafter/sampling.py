"""How tokens are chosen: the argmax of filtered log-probabilities plus noise keyed by position.

Drawing from softmax(l / T) is argmax(l / T + g) with Gumbel noise g. The noise for position i of a
text is made from (seed, i) alone, so what is drawn there does not depend on how the position was
reached, drafted or not (coupling without communication: Daliri, Musco and Suresh, 2024).
Filters and penalties mean what they mean in mlx-lm's ``make_sampler`` and
``make_logits_processors``, and are applied in the same order.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import mlx.core as mx

from .logits import Penalty, exclude_top
from .ranges import OptionRange, bias_pairs, token_ids

# A drawn seed is short enough to be typed again; any up to 2**63 - 1 can be named.
DRAWN_SEEDS = 2**32
LARGEST_SEED = 2**63 - 1
# Below it 1 / temperature is no number of float32.
LEAST_TEMPERATURE = 1e-37
# Below it the largest score is taken off first, so that products with 1 / temperature stay finite.
COLD = 1e-3


def _option(default: Any, text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"range": OptionRange(text, **limits)})


def _window(of: str) -> Any:
    text = f"how many of the latest tokens, prompt included, {of}_penalty looks at"
    return _option(20, text, kind=int, minimum=1, maximum=2**31 - 1)


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen; the defaults are greedy.

    A new option is one field here, and its effect in ``Sampler``. None for an option means its
    default.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Keep the likeliest tokens whose probabilities sum to this; 0 and 1 keep all, as
            in mlx-lm.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest; 0 keeps all.
        xtc_probability: Chance that a token's choice excludes the likeliest tokens (XTC).
        xtc_threshold: XTC excludes all tokens above this probability but the least of them.
        xtc_special_tokens: Ids that XTC never excludes.
        repetition_penalty: Divides positive and multiplies negative logits of recent tokens.
        presence_penalty: Subtracted once from the logit of a recent token.
        frequency_penalty: Subtracted from a recent token's logit for each time it occurred.
        repetition_context_size, presence_context_size, frequency_context_size: How many of the
            latest tokens, prompt included, count as recent.
        logit_bias: Token ids, each with what is added to its logit: a mapping or pairs; kept as
            pairs.
        logprobs: None or False for none; else log-probabilities of the chosen tokens are computed,
            and of so many of the likeliest, or True for those of all tokens: after bias and
            penalties, before temperature and filters.
        seed: Names the noise: the same seed gives the same text. None: each text draws its own.

    Raises:
        RedrafterError: If a value is out of its range.
    """

    temperature: float = _option(
        0.0, "0 takes the likeliest token", minimum=LEAST_TEMPERATURE, or_zero=True
    )
    top_p: float = _option(
        1.0, "share of probability sampled from; 0 and 1 are all", minimum=0, maximum=1
    )
    top_k: int = _option(0, "sample from the K likeliest tokens; 0 is all", kind=int, minimum=0)
    min_p: float = _option(
        0.0, "least probability relative to the likeliest; 0 is none", minimum=0, maximum=1
    )
    repetition_penalty: float | None = _option(
        None, "divides the logits of recent tokens", minimum=0
    )
    repetition_context_size: int = _window("repetition")
    presence_penalty: float | None = _option(None, "subtracted from recent tokens' logits")
    presence_context_size: int = _window("presence")
    frequency_penalty: float | None = _option(
        None, "subtracted from recent tokens' logits for each time they occurred"
    )
    frequency_context_size: int = _window("frequency")
    seed: int | None = _option(
        None, "names the text; drawn anew by default", kind=int, minimum=0, maximum=LARGEST_SEED
    )
    xtc_probability: float = _option(
        0.0, "chance that the likeliest tokens are excluded", minimum=0, maximum=1
    )
    xtc_threshold: float = _option(
        0.1, "probability above which XTC excludes tokens", minimum=0, maximum=0.5
    )
    xtc_special_tokens: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = ()
    logprobs: int | bool | None = _option(
        None, "report log-probabilities, and those of so many likeliest", kind=int, minimum=0
    )

    def __post_init__(self) -> None:
        if self.logprobs is False:
            object.__setattr__(self, "logprobs", None)
        for one in fields(self):
            if "range" in one.metadata and not (one.name == "logprobs" and self.logprobs is True):
                value = one.metadata["range"].checked(getattr(self, one.name), one.name)
                value = one.default if value is None else value
                object.__setattr__(self, one.name, value)
        object.__setattr__(self, "logit_bias", bias_pairs(self.logit_bias))
        name = "xtc_special_tokens"
        object.__setattr__(self, name, token_ids(self.xtc_special_tokens, name))

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as pairs of a token id and what is added to its logit."""
        return cast("tuple[tuple[int, float], ...]", self.logit_bias)

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """Those that are on, in mlx-lm's order: (kind, penalty, context size)."""
        entries = (
            ("repetition", self.repetition_penalty, self.repetition_context_size),
            ("presence", self.presence_penalty, self.presence_context_size),
            ("frequency", self.frequency_penalty, self.frequency_context_size),
        )
        return tuple((kind, value, size) for kind, value, size in entries if value)

    def seeded(self, offset: int = 0) -> SamplingConfig:
        """The same with a seed: its own plus ``offset``, or one that is drawn now."""
        if self.seed is None:
            return replace(self, seed=secrets.randbelow(DRAWN_SEEDS))
        return replace(self, seed=(self.seed + offset) % (LARGEST_SEED + 1)) if offset else self


def scores(
    config: SamplingConfig,
    logits: mx.array,
    noise: mx.array | None,
    *,
    normalise: bool = True,
    coin: mx.array | None = None,
) -> mx.array:
    """What a choice is the argmax of: log-probabilities, filtered, at temperature, plus noise;
    without noise the log-probabilities as they are, which have the same argmax.

    Args:
        config: Temperature and filters.
        logits: (..., vocabulary), after penalties.
        noise: Broadcastable to the logits; None when greedy.
        normalise: False leaves each row wrong by a constant where that changes no choice. It saves
            the exponentials over the vocabulary, which are expensive on a CPU.
        coin: What decides over XTC, (..., 1); None leaves XTC out.

    Returns:
        Same shape as logits; with noise float32, and -inf where a filter removed the token.
    """
    # Imported here: it takes seconds, and a command line's --help needs only the options above.
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    # Top-p takes sums of probabilities. In half precision the subtraction rounds, as mlx-lm's does.
    by_sum = 0 < config.top_p < 1
    needed = by_sum or logits.dtype != mx.float32
    logprobs = logits
    if normalise or needed:
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if noise is None:
        return logprobs
    if by_sum:
        logprobs = apply_top_p(logprobs, config.top_p)
    if config.min_p > 0:
        logprobs = apply_min_p(logprobs, config.min_p)
    if coin is not None:
        logprobs = exclude_top(
            logprobs,
            coin,
            probability=config.xtc_probability,
            threshold=config.xtc_threshold,
            special_tokens=config.xtc_special_tokens,
        )
    if 0 < config.top_k < logits.shape[-1]:
        logprobs = apply_top_k(logprobs, config.top_k)
    if config.temperature < COLD:
        logprobs = logprobs.astype(mx.float32)
        logprobs = logprobs - mx.max(logprobs, axis=-1, keepdims=True)
    logprobs = logprobs.astype(mx.float32)
    if config.temperature != 1.0:  # a pass over the vocabulary less
        logprobs = logprobs * (1.0 / config.temperature)
    return logprobs + noise
