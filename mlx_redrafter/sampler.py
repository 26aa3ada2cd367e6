"""Choosing a text's tokens, drafted or not, with the noise of their positions; see ``sampling``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

from .choices import NO_TOKEN, Choices
from .errors import RedrafterError
from .logits import (
    Constraint,
    LogitsProcessor,
    below_best,
    biased,
    keep_allowed,
    penalise,
    processed,
    reported_logprobs,
)
from .noise import coins, noise_rows
from .sampling import SamplingConfig, scores
from .tree import DraftTree

NOISE_BLOCK = 8
# Blocks of noise that are kept, from where the text stands on.
KEPT_BLOCKS = 12


class Sampler:
    """Turns logits into choices for one text.

    Args:
        config: What to do; with a seed.
        vocab_size: Number of logits.
        processors: Change the logits before a token is chosen, as mlx-lm's do: each is called with
            the text's tokens, once for every token and in their order, drafted or not. Trees have
            to be known to the host then.
        constraint: Says after them which tokens may come next; others are never chosen.
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
        constraint: Constraint | None = None,
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
        self._constraint = constraint
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
        allowed = self._allowed(recent, tree)
        if self._processors and len(tree) > 1:
            return self._walk(logits, tree, allowed, noise, coin, recent, tells_noise=tells_noise)
        if self._processors:
            text = mx.concatenate([mx.array(list(recent), dtype=mx.int32), tree.tokens])
            logits = processed(logits, text, self._processors)
        logits = keep_allowed(logits, allowed)
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
        allowed: mx.array | None,
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
            own = keep_allowed(own, None if allowed is None else allowed[row])
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
        if self.needs_tokens:  # what processors and constraints leave may be nothing
            nothing = mx.max(logits, axis=-1) == -mx.inf
            tokens = mx.where(nothing, NO_TOKEN, tokens)
        if self.config.logprobs is None:
            return Choices(tokens, flipped)
        return Choices(tokens, flipped, *reported_logprobs(logits, tokens, self.config.logprobs))

    @property
    def needs_tokens(self) -> bool:
        """Whether trees have to be known to the host."""
        return bool(self._processors) or self._constraint is not None

    @property
    def asks_caller(self) -> bool:
        """Whether functions of the caller's have a part in the choices."""
        return self._choose is not None or bool(self._processors)

    def failure(self, text: Sequence[int]) -> RedrafterError:
        """Why no token could be chosen.

        Args:
            text: Prompt and text, to its last token.
        """
        told = None if self._constraint is None else self._constraint.failure(text)
        if told is not None:
            return told
        if self._choose is not None:
            return RedrafterError("sampler returned a number that is no token id of this model.")
        left = "leave no token" if self._constraint is None else "leave no token that is allowed"
        return RedrafterError(
            f"logits_processors {left} to come next: let them keep one above minus infinity."
        )

    def _allowed(self, recent: Sequence[int], tree: DraftTree) -> mx.array | None:
        """Which tokens may follow each node, bool (n, vocab_size); None where all may.

        Waits for the root, but not for the logits: those are computed meanwhile.
        """
        if self._constraint is None:
            return None
        known = tree.read()
        if known.tokens[0] == NO_TOKEN:  # the text has failed by then
            return None
        return mx.array(self._constraint.allowed(recent, known, self._vocab_size))

    def _penalised(self, logits: mx.array, tree: DraftTree, text: Sequence[int]) -> mx.array:
        """Logits after the bias and the penalties, in mlx-lm's order."""
        if self.config.bias:
            logits = biased(logits, self.config.bias)
        if self.config.penalties:
            logits = penalise(logits, tree, text, self.config.penalties)
        return logits
