"""One text while it is decoded: what is its own, apart from the loop that takes its steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import mlx.core as mx

from ..cache.prompt_cache import PromptCache
from ..choices import NO_TOKEN, Choices
from ..drafting.copies import MAX_CHAIN, TextCopies
from ..drafting.copy_memory import CopyMemory
from ..drafting.next_draft import next_draft_input
from ..drafting.noise_scale import NoiseScale
from ..drafting.shape import BeamShape
from ..drafting.source import DraftInput, DraftSource
from ..errors import RedrafterError
from ..ranges import of_kind
from ..sampler import Sampler
from ..tree import DraftTree, HostTree, accept, read_numbers
from .backoff import DraftBackoff
from .checks import checked_prompt, token_limit
from .config import DecodingConfig
from .copying import CopyProposal, SequenceCopies
from .head_memory import HeadMemory
from .lockstep import shared_seed
from .logprobs import logprobs_of
from .model import SpeculativeModel
from .open_cache import forget_other_weights, open_cache
from .statistics import AcceptanceStats
from .step import DecodedToken, PendingStep, StepRecord
from .watch import Watch


class Sequence:
    """One text while it is decoded.

    Between steps every committed token except the last, the root, is in the cache.

    Args:
        model: Target and drafter.
        prompt: Token ids, at least one.
        config: How to decode.
        cache: Of an earlier turn, to resume; only what differs is prefilled. None: an empty one.
        stats: Counts to add to.
        copied: What texts share of copies; None: of this text alone.

    Attributes:
        prompt: As given.
        config: As given, with the seed that was drawn where it named none.
        cache: What the text has left in the target so far.
        stats: Counts of its steps.
        drafts: Whether it is drafted at all.
        sources: What proposes for it, each with its own memory of the text, besides the draft head.
        copies: What proposes copies of the text, once its prompt is read; None where none are.
        noise_scale: How far drafts follow the noise that choices are drawn with.
        backoff: When it pauses drafts that are useless for a while.
        watch: Compares a draft with the text, however much of it is verified.
        last_token: Its last token, the root of the next step, as of the last step that was read.
        emitted: Tokens decoded.
        finish_reason: "stop", "length", "error", or None while it goes on.
        failure: Where that is "error", why no token could be chosen after the last.

    Raises:
        RedrafterError: If the prompt is empty or holds anything but ids of the vocabulary, or an
            option does not fit the model.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        prompt: Tokens[int],
        config: DecodingConfig,
        *,
        cache: PromptCache | None = None,
        stats: AcceptanceStats | None = None,
        copied: CopyMemory | None = None,
    ):
        self.prompt = checked_prompt(prompt, model.target.vocab_size)
        model.refresh()
        self._target = model.target
        self._model = model
        limit = token_limit(len(self.prompt), config.max_tokens, model.target.max_positions)
        sampling = shared_seed(None if model.leader else model.ranks, config.sampling)
        self.config = config = replace(config, sampling=sampling, max_tokens=limit)
        self.drafts = config.draft and model.drafts and config.sampler is None
        self.cache = open_cache(model.target, cache, config.cache_options, drafts=self.drafts)
        self._memory: HeadMemory | None = None
        stats = AcceptanceStats() if stats is None else stats
        self.stats = of_kind(stats, "stats", AcceptanceStats, "an AcceptanceStats")
        self.backoff = DraftBackoff()
        self.watch = Watch()
        self.noise_scale = NoiseScale()
        self.sources: list[DraftSource] = []
        self.copies: SequenceCopies | None = None
        self._copied = CopyMemory() if copied is None else copied
        self._sampler = Sampler(
            config.sampling,
            model.target.vocab_size,
            processors=config.logits_processors,
            constraint=config.constraint,
            choose=config.sampler,
            ends=config.eos_token_ids,
            longest=None if limit == -1 else len(self.prompt) + limit,
        )
        self.last_token = self.prompt[-1]
        self._end: tuple[PendingStep, int] | None = None
        self.emitted = 0
        self.finish_reason: str | None = None
        self.failure: RedrafterError | None = None

    def prefill(self) -> Iterator[tuple[int, int]]:
        """Commit all but the prompt's last token, in pieces; no logits are computed.

        Yields:
            (prompt tokens done, prompt tokens to do), first for what the cache held already.
        """
        total = len(self.prompt) - 1
        if self._may_copy:
            self._begin_copies()
        # The text may have waited, and the weights be others by now.
        self._model.refresh()
        forget_other_weights(self._target, self.cache)
        memory = self._memory = self._model.memory if self.drafts else None
        self.cache.quantization = self.config.cache_options.quantization
        if memory is not None:
            memory.open(self.cache)
        held = self.cache.reuse(self.prompt, remembered=memory is not None)
        self.cache.user = self
        self.sources = [s.begin(self.prompt) for s in self._model.sources if self.drafts]
        yield held, total
        self.check_cache()
        step_size = self.config.prefill_step_size
        for done in self._target.fill(self.prompt[held:total], self.cache, step_size, memory):
            yield held + done, total
            self.check_cache()

    @contextmanager
    def holding_cache(self) -> Iterator[None]:
        """Let no other thread use the cache inside the block.

        Raises:
            RedrafterError: If another text has used it since, or it was set back.
        """
        with self.cache.lock:
            self.check_cache()
            yield

    def check_cache(self) -> None:
        """Refuse to go on where another text has used the cache since, or it was set back.

        Raises:
            RedrafterError: If one has.
        """
        if self.cache.user is not self:
            raise RedrafterError(
                "This text cannot go on: its cache has served another text since, or was set back; "
                "read or close one text before the next begins, or give each a cache of its own."
            )

    @property
    def needs_tokens(self) -> bool:
        """Whether the host has to know a tree before choices are made."""
        return self._sampler.needs_tokens

    @property
    def is_constrained(self) -> bool:
        """Whether the host says which tokens may come next."""
        return self.config.constraint is not None

    @property
    def asks_caller(self) -> bool:
        """Whether functions of the caller's have a part in its choices."""
        return self._sampler.asks_caller

    def sources_for(self, shape: BeamShape, *, timed: bool) -> list[DraftSource]:
        """What proposes in a step: the head's beam search of that shape, and the text's sources."""
        head = self._model.source(shape, self.config.sampling, timed=timed)
        return [*([head] if head is not None else []), *self.sources]

    @property
    def _may_copy(self) -> bool:
        """Whether copies of the text are to be drafted, and can be verified."""
        wanted = self.config.draft and self.config.copy and self.config.sampler is None
        return wanted and self._target.verifies != "nothing" and self.cache.can_discard

    def _begin_copies(self) -> None:
        """Copy from the text from now on."""
        answers = self._copied.answers if self.config.remember else None
        text = TextCopies(self.cache.text_index, self.config.eos_token_ids, answers)
        self.cache.text_index = text.automaton
        self.copies = SequenceCopies(text, self._copied.acceptance)
        self.copies.begin(self.prompt)

    def propose_copies(self) -> CopyProposal | None:
        """Copies that may follow the last token, as far as they can be verified."""
        if self.copies is None or self.finish_reason is not None:
            return None
        most = min(MAX_CHAIN, self._deepest)
        while most > 0 and self.cache.changes_within(most):
            most //= 2
        return self.copies.propose(most)

    @property
    def _deepest(self) -> int:
        """The depth down to which a drafted token may have a successor in the text."""
        limit = self.config.max_tokens
        return sys.maxsize if limit == -1 else max(0, limit - self.emitted - 1)

    def useful_part(self, tree: HostTree) -> HostTree:
        """A draft without what comes after the text's end; itself where that is nothing.

        A token that ends the text stays, for it tells that no further draft is needed. The last
        that ``max_tokens`` allows goes, since no choice after it is.
        """
        over = tree.comes_after(self.config.eos_token_ids)
        deepest = self._deepest
        return tree.pick(
            [node for node, depth in enumerate(tree.depths) if depth <= deepest and not over[node]]
        )

    @property
    def can_draft(self) -> bool:
        """Whether a draft can begin: not right after a prompt."""
        return self.drafts and self._end is not None

    def follow(self, pending: PendingStep) -> None:
        """The next step begins where a plain one ends that is not read yet."""
        self._end = pending, 0

    @property
    def root(self) -> mx.array:
        """Its last token, int (1,); may be unevaluated."""
        if self._end is None:
            return mx.array([self.last_token])
        pending, leaf = self._end
        return pending.choices.tokens[leaf : leaf + 1]

    def noise(self, depth: int) -> mx.array | None:
        """Noise for the tokens after the root and each depth, (1 + depth, vocab_size), or None."""
        return self._sampler.noise(len(self.cache) + 1, 1 + depth)

    def draft_input(self, noise: mx.array | None) -> DraftInput:
        """What a draft from the root is told."""
        assert self._end is not None, "nothing is drafted right after a prompt"
        pending, leaf = self._end
        guessed = None if noise is None else noise * self.noise_scale.scale
        root = self.root.astype(mx.int32)
        view = self._memory.view(self.cache, root) if self._memory else None
        return DraftInput(root, pending.hidden[leaf], guessed, self.cache.tokens, memory=view)

    def next_draft_input(
        self, pending: PendingStep, noise: mx.array | None, source: DraftSource
    ) -> DraftInput:
        """What a draft is told that starts where a step under way will end."""
        memory, look = self._memory, None
        if memory is not None:
            look = partial(memory.next_view, self.cache, pending.tree, pending.hidden)
        return next_draft_input(
            pending.tree, pending.choices, pending.hidden, noise, self.cache.tokens, source,
            self.noise_scale, look,
        )  # fmt: skip

    def choose(
        self, logits: mx.array, tree: DraftTree, noise: mx.array | None, *, resting: bool
    ) -> Choices:
        """The target's choices after the nodes of a verified tree.

        Args:
            logits: Of its nodes, (n, vocab_size).
            tree: It.
            noise: See :meth:`noise`.
            resting: Whether nothing is drafted soon, so that no draft's noise has to be learnt.
        """
        tells_noise = self.drafts and not resting
        text = self.cache.tokens
        return self._sampler.choose(logits, tree, noise, text, tells_noise=tells_noise)

    def read(self, pending: PendingStep) -> StepRecord:
        """Wait for a step; walk its tree."""
        tree = pending.tree.read().first(pending.size - 1)
        choices: tuple[int, ...] = read_numbers(pending.choices.tokens)[: pending.size]
        path = tuple(accept(tree.tokens, tree.parents, choices))
        if pending.choices.flipped_by_noise is not None:
            flipped = read_numbers(pending.choices.flipped_by_noise)
            self.noise_scale.observe([flipped[node] for node in path])
        return StepRecord(tree, choices, path, pending.copied, pending.cut, pending.watched)

    def decoded(self, pending: PendingStep, record: StepRecord) -> list[DecodedToken]:
        """The tokens of text that a step made, the last with the reason why the text ends there."""
        produced = record if self.emitted else None
        logprobs = logprobs_of(pending.choices, record.path)
        tokens = self.advance(pending, record)
        last = None if self.failure is not None else self.finish_reason
        reasons = [*[None] * (len(tokens) - 1), last]
        return [
            DecodedToken(token, record.source(place), reasons[place], produced, *logprobs[place])
            for place, token in enumerate(tokens)
        ]

    def advance(self, pending: PendingStep, record: StepRecord) -> list[int]:
        """Take a step's tokens up to the end of the text; its end is the next root.

        Returns:
            The tokens; ``finish_reason`` says whether they end the text.
        """
        tokens = record.tokens
        limit = self.config.max_tokens
        if limit != -1:
            tokens = tokens[: limit - self.emitted]
        ends = [place for place, token in enumerate(tokens) if token in self.config.eos_token_ids]
        if ends:
            tokens, self.finish_reason = tokens[: ends[0] + 1], "stop"
        elif tokens[-1] == NO_TOKEN:
            tokens = self._fail_after(tokens[:-1])
        elif self.emitted + len(tokens) == limit:
            self.finish_reason = "length"
        self._end = pending, record.path[-1]
        if not tokens:
            return tokens
        self.last_token = tokens[-1]
        self.emitted += len(tokens)
        self.watch.follow(tokens)
        if pending.next_draft is not None and pending.next_draft.watched:
            self.watch.begin(pending.next_draft)
        for source in self.sources:
            source.accepted(tokens)
        if self.copies is not None:
            self.copies.accepted(tokens)
            if self.finish_reason is not None:
                self.copies.end()
        return tokens

    def _fail_after(self, tokens: list[int]) -> list[int]:
        """End the text with an error, since nothing can follow these tokens of a step."""
        before = len(self.prompt) + self.emitted
        text = [*self.cache.tokens[: before - 1], self.last_token, *tokens]
        self.failure, self.finish_reason = self._sampler.failure(text), "error"
        return tokens

    def commit(self, pending: PendingStep, record: StepRecord, emitted: int) -> None:
        """Keep the root and the accepted nodes whose successors became text."""
        path = record.path[: max(1, emitted)]
        self._keep(pending, path, [record.tree.tokens[node] for node in path])

    def commit_root(self, pending: PendingStep) -> None:
        """Keep the root of a plain step, whose token is known before it is read."""
        self._keep(pending, [0], [self.last_token])

    def _keep(self, pending: PendingStep, path: Tokens[int], tokens: list[int]) -> None:
        if self._memory is not None:
            states = pending.hidden
            if list(path) != list(range(len(pending.tree))):
                states = mx.take(states, mx.array(list(path)), axis=0)
            self._memory.keep(states, mx.array(tokens), self.cache)
        self.cache.commit(path, tokens)

    def count(self, pending: PendingStep, record: StepRecord, emitted: int, seconds: float) -> None:
        """Count a step that took so long and made so many tokens of text."""
        accepted = record.path[1 : 1 + emitted]
        self.stats.record(
            record.tree.depths[1:],
            len(accepted),
            emitted,
            copied=len(record.copied),
            accepted_copies=sum(node in record.copied for node in accepted),
            seconds=seconds,
            draft_seconds=pending.draft_seconds,
        )

    def close(self, handed_out: int) -> None:
        """Leave the cache with the prompt and all tokens handed out except the last, and all cores
        to what comes after the text."""
        self._target.take_cores(len(self.prompt) + 1)
        with self.cache.lock:
            if self.cache.user is self:
                self.cache.user = None
                self.cache.rewind(min(len(self.cache), len(self.prompt) + handed_out - 1))
