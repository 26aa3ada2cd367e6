"""Choosing tokens: the argmax of filtered log-probabilities plus noise keyed by position.

Drawing from softmax(l / T) is argmax(l / T + g) with Gumbel noise g. The noise for position i of a
text is made from (seed, i) alone, so what is drawn there does not depend on how the position was
reached, drafted or not (coupling without communication: Daliri, Musco and Suresh, 2024).
Filters and penalties mean what they mean in mlx-lm's ``make_sampler`` and
``make_logits_processors``, and are applied in the same order.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import mlx.core as mx

from .choices import NO_TOKEN, Choices
from .errors import RedrafterError
from .logits import (
    LogitsProcessor,
    Penalty,
    below_best,
    biased,
    exclude_top,
    penalise,
    processed,
    reported_logprobs,
)
from .noise import coins, noise_rows
from .ranges import OptionRange, bias_pairs, token_ids
from .tree import DraftTree

NOISE_BLOCK = 8
# Blocks of noise that are kept, from where the text stands on.
KEPT_BLOCKS = 12
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

    A new option is one field here, and its effect in :class:`Sampler`. None for an option means its
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

    @property
    def history_size(self) -> int:
        """How many recent tokens the penalties look at; 0 when none is on."""
        return max((size for _, _, size in self.penalties), default=0)

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
    """Log-probabilities, filtered, at temperature, plus noise: their argmax is the choice.

    Args:
        config: Temperature and filters.
        logits: (..., vocabulary), after penalties.
        noise: Broadcastable to the logits; None when greedy.
        normalise: False leaves each row wrong by a constant where that changes no choice. It saves
            the exponentials over the vocabulary, which are expensive on a CPU.
        coin: What decides over XTC, (..., 1); None leaves XTC out.

    Returns:
        Same shape as logits; -inf where a filter removed the token.
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


class Sampler:
    """Turns logits into choices for one text.

    Args:
        config: What to do; with a seed.
        vocab_size: Number of logits.
        processors: Change the logits before a token is chosen, as mlx-lm's do: each is called with
            the text's tokens, once for every token and in their order, drafted or not. Trees have
            to be known to the host then.
        choose: Chooses instead of the configuration, as mlx-lm's samplers do: (1, vocab_size)
            log-probabilities to token ids (1,).
        ends: Tokens that end the text; of a tree, processors are not asked what would follow.
        longest: Tokens of prompt and text at most, after which they are not asked either.
    """

    def __init__(
        self,
        config: SamplingConfig,
        vocab_size: int,
        *,
        processors: Sequence[LogitsProcessor] = (),
        choose: Callable[[mx.array], mx.array] | None = None,
        ends: frozenset[int] = frozenset(),
        longest: int | None = None,
    ):
        if config.top_k >= vocab_size:
            raise RedrafterError(
                f"top_k is {config.top_k}, but has to be below the vocabulary's {vocab_size}."
            )
        ids = (*config.xtc_special_tokens, *(token for token, _ in config.bias))
        if not all(0 <= token < vocab_size for token in ids):
            raise RedrafterError(
                "logit_bias and xtc_special_tokens may name ids of the vocabulary only, "
                f"below {vocab_size}."
            )
        self.config = config
        self._vocab_size = vocab_size
        self._processors = tuple(processors)
        self._choose = choose
        self._ends = ends
        self._longest = longest
        self._blocks: dict[int, mx.array] = {}

    def noise(self, first: int, count: int) -> mx.array | None:
        """Noise for ``count`` positions from ``first``, (count, vocab_size); None when greedy.

        Rows are made in blocks, each once, and dropped when the text has passed them; those that a
        rejected draft had needed wait for the text to get there.
        """
        if self.config.temperature == 0 or self._choose is not None:
            return None
        wanted = range(first // NOISE_BLOCK, (first + count - 1) // NOISE_BLOCK + 1)
        ahead = range(wanted[0], wanted[0] + KEPT_BLOCKS)
        kept = {index: rows for index, rows in self._blocks.items() if index in ahead}
        self._blocks = kept | {index: self._block(index) for index in wanted}
        rows = [self._blocks[index] for index in wanted]
        lead = first - wanted[0] * NOISE_BLOCK
        joined = rows[0] if len(rows) == 1 else mx.concatenate(rows)
        return joined[lead : lead + count]

    def _block(self, index: int) -> mx.array:
        if index in self._blocks:
            return self._blocks[index]
        return noise_rows(self.config.seed or 0, index * NOISE_BLOCK, NOISE_BLOCK, self._vocab_size)

    def choose(
        self,
        logits: mx.array,
        tree: DraftTree,
        noise: mx.array | None,
        recent: Sequence[int],
        *,
        tells_noise: bool = True,
    ) -> Choices:
        """The target's choice after each node of a tree.

        Args:
            logits: (n, vocab_size).
            tree: The nodes.
            noise: Row d for nodes of depth d, (max_depth + 1, vocab_size); None when greedy.
            recent: Tokens before the root, all of them.
            tells_noise: Whether to say which choices noise decided: a pass over the vocabulary.
        """
        logits = self._penalised(logits, tree, recent)
        coin = None
        if noise is not None:
            noise = mx.take(noise, tree.depths, axis=0)
            if self.config.xtc_probability > 0:
                at = tree.depths + (len(recent) + 1)
                coin = coins(self.config.seed or 0, at)[:, None]
        if self._processors and len(tree) > 1:
            return self._walk(logits, tree, noise, coin, recent, tells_noise=tells_noise)
        if self._processors:
            text = mx.concatenate([mx.array(list(recent), dtype=mx.int32), tree.tokens])
            logits = processed(logits, text, self._processors)
        if self._choose is not None:
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            rows = [self._chosen(logprobs[n : n + 1]) for n in range(len(tree))]
            return self._report(logits, mx.concatenate(rows), None)
        return self._draw(logits, noise, coin, tells_noise=tells_noise)

    def _draw(
        self,
        logits: mx.array,
        noise: mx.array | None,
        coin: mx.array | None,
        *,
        tells_noise: bool,
    ) -> Choices:
        """A choice from each row of logits, with its noise and what decides over XTC."""
        chosen = scores(self.config, logits, noise, normalise=False, coin=coin)
        tokens = mx.argmax(chosen, axis=-1).astype(mx.int32)
        told = noise is not None and tells_noise
        return self._report(logits, tokens, below_best(logits, tokens) if told else None)

    def _walk(
        self,
        logits: mx.array,
        tree: DraftTree,
        noise: mx.array | None,
        coin: mx.array | None,
        recent: Sequence[int],
        *,
        tells_noise: bool,
    ) -> Choices:
        """The choices after the nodes that they accept, one after the other; zero elsewhere.

        A processor may count its calls, follow a grammar, or refuse what the text cannot hold. So
        it is never asked about a branch that is not taken.
        """
        known = tree.known
        assert known is not None, "processors need trees that the host knows"
        text, path, made = list(recent), [], []
        node: int | None = 0
        while node is not None:
            text.append(known.tokens[node])
            row = slice(node, node + 1)
            own = processed(logits[row], mx.array(text, dtype=mx.int32), self._processors)
            path.append(node)
            own_noise = None if noise is None else noise[row]
            own_coin = None if coin is None else coin[row]
            made.append(self._draw(own, own_noise, own_coin, tells_noise=tells_noise))
            token = cast("int", made[-1].tokens.item())
            ended = token in self._ends or len(text) + 1 == self._longest
            node = None if ended else known.child(node, token)
        return Choices.at(path, made, len(tree))

    def _chosen(self, logprobs: mx.array) -> mx.array:
        """What the caller's own function chooses, int32 (1,): ``NO_TOKEN`` where that is no id.

        Whatever it says, the next step's embedding must not read beyond its rows.
        """
        assert self._choose is not None
        given = self._choose(logprobs)
        try:
            token = mx.array(given)
        except (TypeError, ValueError, OverflowError):  # nothing that an array is made of
            token = mx.zeros((0,))
        if token.size != 1 or not mx.issubdtype(token.dtype, mx.integer):
            raise RedrafterError("sampler has to return one token id, as an array of integers.")
        token = token.reshape(1).astype(mx.int64)
        exists = (token >= 0) & (token < self._vocab_size)
        return mx.where(exists, token, NO_TOKEN).astype(mx.int32)

    def _report(self, logits: mx.array, tokens: mx.array, flipped: mx.array | None) -> Choices:
        if self.config.logprobs is None:
            return Choices(tokens, flipped)
        return Choices(tokens, flipped, *reported_logprobs(logits, tokens, self.config.logprobs))

    @property
    def needs_tokens(self) -> bool:
        """Whether trees have to be known to the host."""
        return bool(self._processors)

    @property
    def asks_caller(self) -> bool:
        """Whether functions of the caller's have a part in the choices."""
        return self._choose is not None or bool(self._processors)

    def _penalised(self, logits: mx.array, tree: DraftTree, text: Sequence[int]) -> mx.array:
        """Logits after the bias and the penalties, in mlx-lm's order."""
        if self.config.bias:
            logits = biased(logits, self.config.bias)
        if self.config.penalties:
            logits = penalise(logits, tree, text, self.config.penalties)
        return logits
