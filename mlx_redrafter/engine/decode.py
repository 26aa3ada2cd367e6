"""The decoding loop: prefill, then draft, verify, accept, commit. Plain decoding is the same loop
with trees that are only a root.

Between steps every committed token except the last is in the caches; ``root`` is that last token
and ``hidden`` the target's final hidden state from which it was chosen. A step is one lazy graph
with one evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx

from ..cache.prompt_cache import PromptCache
from ..cache.quantized import CacheOptions
from ..drafting.beam_search import BeamSearch
from ..drafting.drafter import Drafter
from ..drafting.next_draft import NextDraft, next_draft_input
from ..drafting.noise_scale import NoiseScale
from ..drafting.shape import BeamShape
from ..drafting.source import DraftInput, DraftSource
from ..errors import RedrafterError
from ..sampling import Choices, Sampler, SamplingConfig
from ..target.target import PREFILL_STEP
from ..tree import DraftTree, HostTree, accept
from .model import SpeculativeModel
from .open_cache import open_cache
from .shape_planner import ShapePlanner
from .statistics import AcceptanceStats
from .step import DecodedToken, PendingStep, StepRecord

CLEAR_CACHE_EVERY = 256


@dataclass(frozen=True)
class DecodingConfig:
    """What the loop is to do.

    Attributes:
        max_tokens: Tokens to decode at most; -1 for no limit.
        sampling: How tokens are chosen.
        draft: Whether to draft, where the model can.
        beam: Shape of the drafts.
        eos_token_ids: Tokens that end the text.
        prefill_step_size: Prompt tokens run through the target at once.
        cache_options: How keys and values are kept.
    """

    max_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft: bool = True
    beam: BeamShape = field(default_factory=BeamShape)
    eos_token_ids: frozenset[int] = frozenset()
    prefill_step_size: int = PREFILL_STEP
    cache_options: CacheOptions = field(default_factory=CacheOptions)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        if self.max_tokens != -1 and self.max_tokens < 1:
            raise RedrafterError(
                f"max_tokens is {self.max_tokens}, but has to be 1 or more, or -1 for no limit."
            )
        if self.prefill_step_size < 1:
            raise RedrafterError(
                f"prefill_step_size is {self.prefill_step_size}, but has to be 1 or more."
            )


def decode(
    model: SpeculativeModel,
    prompt: Sequence[int],
    config: DecodingConfig | None = None,
    *,
    cache: PromptCache | None = None,
    stats: AcceptanceStats | None = None,
    planner: ShapePlanner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[DecodedToken]:
    """Decode tokens after a prompt.

    However the iterator ends (end of sequence, max_tokens, an exception, or its consumer closing
    it), the cache then holds the prompt and every token that was handed out except the last.

    Args:
        model: Target and drafter.
        prompt: Token ids, at least one.
        config: What to do.
        cache: Caches of an earlier turn, to go on from; only what differs is prefilled.
        stats: Counts to add to.
        planner: Chooses each step's beam shape, or plain decoding, instead of ``config.beam``.
        progress: Told (prompt tokens done, prompt tokens to do) during prefill.

    Yields:
        Tokens, the end-of-sequence token included; the last one carries a finish reason.

    Raises:
        RedrafterError: If the prompt is empty or holds ids outside the vocabulary.
    """
    config = config or DecodingConfig()
    size = model.target.vocab_size
    if not prompt:
        raise RedrafterError("The prompt is empty: give at least one token.")
    if not all(0 <= token < size for token in prompt):
        raise RedrafterError(f"The prompt holds token ids outside the vocabulary of {size}.")
    drafts = config.draft and model.drafter is not None
    cache = open_cache(model.target, cache, config.cache_options, drafts=drafts)
    stats = stats if stats is not None else AcceptanceStats()
    loop = TextLoop(model, config, cache, stats, planner)
    return loop.run(list(prompt), progress or (lambda _done, _total: None))


class TextLoop:
    """The state of one text while it is decoded: :meth:`run`, or its steps one by one.

    Attributes:
        cache: What the text has left in the target so far.
        planner: Chooses what to draft; None where nothing is drafted, or always the same.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        config: DecodingConfig,
        cache: PromptCache,
        stats: AcceptanceStats,
        planner: ShapePlanner | None,
    ):
        self._model = model
        self._drafts = config.draft and model.drafter is not None
        self.planner = planner if self._drafts else None
        self._target = model.target
        self._config = config
        self.cache = cache
        self._stats = stats
        self._sampler = Sampler(config.sampling, model.target.vocab_size)
        self._noise_scale = NoiseScale()
        # A chain is picked from a tree by its scores; and other sources want to see the text.
        trees = model.target.verifies == "tree"
        self._may_draft_ahead = trees and isinstance(model.drafter, Drafter)
        if self.planner is None:
            self.source(self.next_shape())  # a shape that cannot be drafted is refused here

    def run(
        self, prompt: list[int], progress: Callable[[int, int], None]
    ) -> Iterator[DecodedToken]:
        """Yield tokens; leave the cache consistent in every case."""
        emitted = 0
        try:
            self.prefill(prompt, progress)
            root = prompt[-1]
            pending = self.launch(mx.array([root]), None, None)
            step: StepRecord | None = None
            counted = 0.0  # up to when time was counted
            while True:
                # Asked for as late as can be: only behind a plain step may the next one overlap.
                shape = self._shape_behind(pending) if pending.is_plain else None
                ahead = self._launch_ahead(pending, root, emitted, shape)
                record = self.read(pending)
                if not emitted:
                    counted = time.perf_counter()  # until here it was the prompt's time
                tokens, finish = self.cut(record, emitted)
                if ahead is None:
                    self.commit(record, len(tokens))
                if emitted:
                    # A plain step starts before the one ahead of it is read; only what follows that
                    # is its own. What planner and reader take is part of the step after.
                    seconds = self.count(pending, record, len(tokens), counted)
                    counted, step = counted + seconds, record
                    if self.planner is not None:
                        self.planner.observe(pending.shape, [record], seconds, len(self.cache))
                if not pending.is_plain and not finish:
                    shape = self._shape_behind(pending)
                # The next step begins before tokens are handed out, so that reading them overlaps
                # with it. A CPU may hold up its beginning, for which the first token does not wait.
                following = ahead
                if emitted and not ahead and not finish:
                    following = self._follow(pending, record, shape)
                for index, token in enumerate(tokens):
                    emitted += 1
                    last = index == len(tokens) - 1
                    drafted = index < record.accepted
                    yield DecodedToken(token, drafted, finish if last else None, step)
                if finish:
                    return
                root, pending = tokens[-1], following or self._follow(pending, record, shape)
                if emitted % CLEAR_CACHE_EVERY < len(tokens):
                    mx.clear_cache()
        finally:
            self.cache.rewind(min(len(self.cache), len(prompt) + emitted - 1))

    def prefill(self, prompt: list[int], progress: Callable[[int, int], None]) -> None:
        """Commit all but the prompt's last token, in chunks; no logits are computed."""
        if self.planner is not None:
            self.planner.begin()
        plain = not self._drafts or (self.planner is not None and self.planner.drafting_disabled)
        self._target.take_cores(1 if plain else len(prompt))
        total = len(prompt) - 1
        held = self.cache.reuse(prompt)
        progress(held, total)
        step_size = self._config.prefill_step_size
        for done in self._target.fill(prompt[held:total], self.cache, step_size):
            progress(held + done, total)

    def next_shape(self) -> BeamShape | None:
        """What to draft in the next step; None is a plain step."""
        if not self._drafts:
            return None
        if self.planner is None:
            return self._config.beam
        shape = self.planner.next_shape(len(self.cache))
        return None if shape and self.cache.changes_within(shape.length) else shape

    def source(self, shape: BeamShape | None) -> tuple[DraftSource | None, float]:
        """What drafts that shape, and how long one draft takes."""
        if shape is None:
            return None, 0.0
        if self.planner is not None:
            source = self._model.source(shape, self._config.sampling, timed=False)
            return source, self.planner.costs.draft_seconds(shape)
        source = self._model.source(shape, self._config.sampling)
        return source, source.seconds if source else 0.0

    def _shape_behind(self, pending: PendingStep) -> BeamShape | None:
        """What to draft in the step behind one, which may have been decided with it."""
        return pending.ahead.shape if pending.ahead else self.next_shape()

    def launch(
        self,
        root: mx.array,
        hidden: mx.array | None,
        shape: BeamShape | None,
        draft: DraftTree | None = None,
        *,
        goes_on: bool = True,
    ) -> PendingStep:
        """Start a step: draft (where a shape is given and no draft), verify, choose.

        Args:
            root: The last chosen token, int (1,).
            hidden: The hidden state it was chosen from; None behind a prompt, where nothing is
                drafted.
            shape: What to draft, or was drafted; None is a plain step.
            draft: What to verify of a draft that was made ahead.
            goes_on: Whether there is likely to be a step behind it, which may be drafted ahead.
        """
        started = time.perf_counter()
        source, draft_seconds = self.source(shape)
        ahead = self._plan_ahead() if goes_on else None
        search = self._search(ahead.shape) if ahead else None
        noise = self.noise(source, search)
        # Where the kind of cache changes, tokens are verified one by one.
        if source is None or hidden is None or self.cache.changes_within(source.max_depth):
            tree, draft_seconds, shape = DraftTree.root_only(root), 0.0, None
        else:
            tree = draft or source(self.state(root, hidden, noise))
            shape = shape if draft or len(tree) > 1 else None
        logits, states = self._target.verify(tree, self.cache)
        choices = self.choose(logits, tree, noise)
        if ahead and search:
            text, noise_scale = self.cache.tokens, self._noise_scale
            behind = next_draft_input(tree, choices, states, noise, text, search, noise_scale)
            ahead = NextDraft(ahead.shape, search(behind))
        pending = PendingStep(tree, choices, states, shape, started, draft_seconds, ahead)
        mx.async_eval(pending.read_back)
        return pending

    def _plan_ahead(self) -> NextDraft | None:
        """What the step behind the one to be launched drafts, if it is to be drafted with it."""
        if self.planner is None or not self._may_draft_ahead or not self.planner.drafts_ahead:
            return None
        return NextDraft(self.next_shape(), None)

    def _search(self, shape: BeamShape | None) -> BeamSearch | None:
        search = self.source(shape)[0]
        return search if isinstance(search, BeamSearch) else None

    def noise(
        self, source: DraftSource | None, search: BeamSearch | None = None
    ) -> mx.array | None:
        """Noise for the tokens after the root and after each depth that the source reaches.

        And for those that a search ahead guesses behind them.
        """
        depth = (source.max_depth if source else 0) + (search.max_depth if search else 0)
        return self._sampler.noise(len(self.cache) + 1, 1 + depth)

    def state(self, root: mx.array, hidden: mx.array, noise: mx.array | None) -> DraftInput:
        """What a draft from ``root`` is told."""
        guessed = None if noise is None else noise * self._noise_scale.scale
        return DraftInput(root.astype(mx.int32), hidden, guessed, self.cache.tokens)

    def choose(self, logits: mx.array, tree: DraftTree, noise: mx.array | None) -> Choices:
        """The target's choices after the nodes of a verified tree."""
        size = self._config.sampling.history_size
        recent = self.cache.tokens[-(size - 1) :] if size > 1 else []
        return self._sampler.choose(logits, tree, noise, recent)

    def _launch_ahead(
        self, pending: PendingStep, root: int, emitted: int, shape: BeamShape | None
    ) -> PendingStep | None:
        """Start a plain step after a plain one before that one is read, so that the two overlap."""
        last = emitted + 1 == self._config.max_tokens
        if not pending.is_plain or shape is not None or last or not self.cache.can_discard:
            return None
        self.cache.commit([0], [root])
        return self.launch(pending.choices.tokens, pending.hidden[0], None)

    def _follow(
        self, pending: PendingStep, record: StepRecord, shape: BeamShape | None
    ) -> PendingStep:
        """Start the step after one that has been read."""
        end = record.path[-1]
        root, hidden = pending.choices.tokens[end : end + 1], pending.hidden[end]
        ahead = pending.ahead
        if ahead is None or ahead.tree is None:
            return self.launch(root, hidden, shape)
        assert self.planner is not None
        assert ahead.shape is not None
        drafted = _host_tree(ahead.tree)
        count = self.planner.num_nodes_to_verify(ahead.shape, drafted, len(self.cache))
        # A draft that ends the text is mostly right, and then another behind it would be in vain.
        ends = not self._config.eos_token_ids.isdisjoint(drafted.tokens[: 1 + count])
        return self.launch(root, hidden, shape, ahead.tree.first(count), goes_on=not ends)

    def read(self, pending: PendingStep) -> StepRecord:
        """Wait for a step; walk its tree."""
        tree = _host_tree(pending.tree)
        choices: tuple[int, ...] = _numbers(pending.choices.tokens)
        path = tuple(accept(tree.tokens, tree.parents, choices))
        if pending.choices.flipped_by_noise is not None:
            flipped_by_noise = _numbers(pending.choices.flipped_by_noise)
            self._noise_scale.observe([flipped_by_noise[node] for node in path])
        return StepRecord(tree, choices, path)

    def cut(self, record: StepRecord, emitted: int) -> tuple[list[int], str | None]:
        """The step's tokens up to the end of the text, and why it ends there, if it does."""
        tokens = [record.choices[node] for node in record.path]
        limit = self._config.max_tokens
        if limit != -1:
            tokens = tokens[: limit - emitted]
        for index, token in enumerate(tokens):
            if token in self._config.eos_token_ids:
                return tokens[: index + 1], "stop"
        return tokens, "length" if emitted + len(tokens) == limit else None

    def commit(self, record: StepRecord, emitted: int) -> None:
        """Keep the root and the accepted nodes whose successors became text."""
        path = record.path[:emitted]
        self.cache.commit(path, [record.tree.tokens[node] for node in path])

    def count(self, pending: PendingStep, record: StepRecord, emitted: int, since: float) -> float:
        """Take note of a step that is over, and of the tokens of text it produced.

        Args:
            pending: The step.
            record: How it went.
            emitted: Tokens of text.
            since: When its time began.

        Returns:
            The seconds it took.
        """
        stats = self._stats
        stats.record(record.tree.depths[1:], min(record.accepted, emitted), emitted)
        stats.evaluations += 1
        stats.draft_seconds += pending.draft_seconds
        elapsed = time.perf_counter() - since
        stats.verify_seconds += max(0.0, elapsed - pending.draft_seconds)
        return elapsed


def _host_tree(tree: DraftTree) -> HostTree:
    """A tree's numbers; waits for them."""
    if len(tree) == 1:
        return HostTree(_numbers(tree.tokens), (-1,), (0.0,))
    return HostTree(
        tokens=_numbers(tree.tokens),
        parents=_numbers(tree.parents),
        log_probs=_numbers(tree.log_probs),
    )


def _numbers(array: mx.array) -> tuple[Any, ...]:
    """A vector's numbers; waits for them."""
    return tuple(cast("list[Any]", array.tolist()))
