"""A target and the drafter that goes with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..cache.prompt_cache import PromptCache
from ..drafting.beam_search import BeamSearch
from ..drafting.chain import ChainSource
from ..drafting.checked import CheckedSource
from ..drafting.drafter import Drafter
from ..drafting.kinds import prepare
from ..drafting.prepared_drafter import PreparedDrafter
from ..drafting.recorded import RecordedDrafts
from ..drafting.shape import BeamShape
from ..drafting.source import DraftInput, DraftSource, Proposer, as_source, proposes
from ..drafting.token_map import check_token_map
from ..errors import RedrafterError
from ..ranges import check_texts, is_count, kind_or_none, of_kind, several, shown
from ..sampler import Sampler
from ..sampling import SamplingConfig
from ..system.device import fuses_drafts
from ..system.last_threads import computing
from ..system.ranks import Ranks
from ..system.snapshot import Snapshot
from ..target.context_limit import context_limit
from ..target.patching import refuse_copy
from ..target.target import Target
from .head_memory import HeadMemory
from .lockstep import Leader
from .planner_lock import PlannerLock
from .saved_cache import load_cache
from .shape_planner import ShapePlanner

_KEPT_SEARCHES = 64  # of shapes and ways of sampling; each may be a compiled graph


class SpeculativeModel:
    """A language model that may draft ahead of itself.

    Args:
        target: Any mlx-lm model, or a Target around one.
        drafter: Its drafter; or a DraftSource, or anything that proposes as one; or None, and
            decoding is plain.
        name: What to call it on screens.
        config: The target's config.json, if it is known.
        beside: Further sources, whose proposals are verified together with the drafter's.
        ranks: The processes that share the target; None where it is this one's alone.
        recorded: How the head's drafts went when it was trained, for planners; None: not known.

    Attributes:
        target: The Target.
        drafter: As given.
        head: The drafter where it is a draft head; None where it is a source, or there is none.
        prepared: The head laid out for drafts; None where there is none.
        memory: How a head with a memory follows texts; None for other heads.
        sources: What proposes besides the head; each text begins its own with ``begin``.
        name: As given.
        config: As given.
        planner_lock: Held by whoever asks a planner of the model's texts, or tells it of a step.
        ranks: As given.
        recorded: As given.
        leader: Tells the other ranks what is decoded here; None where they run the same script.

    Raises:
        RedrafterError: If the target is no model of mlx-lm's, or the drafter does not fit it.
    """

    def __init__(
        self,
        target: nn.Module | Target,
        drafter: Drafter | DraftSource | Proposer | None = None,
        name: str = "",
        config: Mapping[str, Any] | None = None,
        *,
        beside: Sequence[DraftSource | Proposer] = (),
        ranks: Ranks | None = None,
        recorded: RecordedDrafts | None = None,
    ):
        self.target = target if isinstance(target, Target) else Target(target)
        self.drafter = drafter
        check_texts(name=name)
        self.name = name
        self.config = dict(
            of_kind(
                {} if config is None else config, "config", Mapping, "a mapping, as config.json is"
            )
        )
        self.ranks: Ranks | None = kind_or_none(ranks, "ranks", Ranks)
        self.recorded = kind_or_none(recorded, "recorded", RecordedDrafts)
        self.leader: Leader | None = None
        self._planner: ShapePlanner | None = None
        self._make_planner: Callable[[], ShapePlanner | None] | None = None
        self.head = drafter if isinstance(drafter, Drafter) else None
        beside = several(beside, "beside", "a list of draft sources")
        own = [] if drafter is None or self.head is not None else [drafter]
        vocab_size = self.target.vocab_size
        sources = [_source_of(source, vocab_size) for source in (*own, *beside)]
        self.sources = [self._fitting(source) for source in sources]
        self.planner_lock = PlannerLock()
        self._lock = threading.RLock()
        self._searches: OrderedDict[tuple[Any, ...], BeamSearch] = OrderedDict()
        if self.drafts and self.target.refusal is not None:
            raise RedrafterError(
                f"No drafting with this model: {self.target.refusal}; load it without a drafter."
            )
        self.prepared: PreparedDrafter | None = None
        self.memory: HeadMemory | None = None
        self._prepared_from: Snapshot | None = None
        if self.head is not None:
            check_sizes(self.head, self.target)
        self.refresh()

    __reduce_ex__ = refuse_copy

    def refresh(self) -> None:
        """Lay the head out again where its parameters are others than they were; texts begin so.

        Fine-tuned or quantised in the process, a head has other arrays, or other numbers in them.
        """
        if self.head is None:
            return
        arrays = [array for _, array in tree_flatten(self.head.parameters())]
        if self._prepared_from is None or not self._prepared_from.matches(arrays):
            if self.head.config.draft_vocab_size is not None:
                check_token_map(self.head.draft_tokens, self.head.config)
            with self._lock:
                self._prepared_from, self.prepared = Snapshot(arrays), prepare(self.head)
                self.memory = self._memory(self.head)
                self._searches.clear()

    def _memory(self, head: Drafter) -> HeadMemory | None:
        remembering = self.prepared.memory_head if self.prepared else None
        if remembering is None:
            return None
        self.target.check_layers(head.config.target_layers)
        window = head.config.memory_window or 0
        embed, padded = self.target.embed, fuses_drafts()
        return HeadMemory(remembering, embed, window, padded=padded, weights=head)

    @property
    def planner(self) -> ShapePlanner | None:
        """Chooses what to draft where a call names no beam shape; None drafts the default shape.

        Made when it is first asked for, since that may measure the machine for some seconds.
        """
        with self.planner_lock:
            if self._make_planner is not None:
                self._planner, self._make_planner = self._make_planner(), None
            return self._planner

    @planner.setter
    def planner(self, planner: ShapePlanner | None) -> None:
        self._planner, self._make_planner = planner, None

    def plan_with(self, make: Callable[[], ShapePlanner | None]) -> None:
        """Have the planner made when it is first asked for."""
        self._make_planner = make

    @property
    def drafts(self) -> bool:
        """Whether anything proposes."""
        return self.head is not None or bool(self.sources)

    @property
    def lookback(self) -> int | None:
        """That of the preferred source, see :class:`DraftSource`; None where it needs the text."""
        if self.head is not None:
            return self.head.config.lookback
        return self.sources[0].lookback if self.sources else None

    @property
    def drafts_early(self) -> bool:
        """Whether drafts can be made in the graph of the step before them.

        A chain is picked from a tree by its scores, on the host.
        """
        return self.target.verifies == "tree" and self.lookback is not None

    @property
    def context_limit(self) -> int | None:
        """Longest context in tokens that the target was made for; None if that is not known.

        Recurrent state alone has no positions, and so no limit.
        """
        if self.target.max_positions is not None:
            return self.target.max_positions
        return context_limit(self.config) if self.target.attends else None

    def room(self, asked: int | None) -> int | None:
        """Tokens of prompt and answer at most: a number of one's own in place of the limit.

        Past a table of positions no number leads.

        Args:
            asked: What takes the place of :attr:`context_limit`; None for that itself.
        """
        table = self.target.max_positions
        if asked is None or table is None:
            return asked or self.context_limit
        return min(asked, table)

    def agreed(self, seconds: float) -> float:
        """A time that was measured here; of several processes rank 0's, for all."""
        return seconds if self.ranks is None else self.ranks.gather([seconds])[0][0]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A step, or a piece of a prompt: the interpreter does not end within it, and a process of
        the run that is gone is an error in one sentence."""
        with computing(), nullcontext() if self.ranks is None else self.ranks.told():
            yield

    def mark(self) -> None:
        """Say how far this process has come, to those that may have to wait for another."""
        if self.ranks is not None:
            self.ranks.mark()

    def lead(self) -> Leader:
        """Let the other ranks, which ``follow``, decode what this one decodes."""
        assert self.ranks is not None
        self.leader = Leader(self.ranks)
        self.leader.rest()
        return self.leader

    def make_cache(self) -> PromptCache:
        """Empty caches for one conversation."""
        return self.target.make_cache()

    def load_cache(self, path: str | Path) -> PromptCache:
        """A conversation's caches from a file that their ``save`` wrote.

        Args:
            path: The file. It has to be of a model with the same weights, in any process.

        Raises:
            RedrafterError: If it cannot be read, is damaged, or of another model or other weights.
        """
        self.refresh()
        return load_cache(self.target, self.memory, path)

    def source(
        self, shape: BeamShape, sampling: SamplingConfig, *, timed: bool = True
    ) -> DraftSource | None:
        """The head's beam search for a shape; None where there is no head.

        It is made the first time it is asked for, and warmed up and timed the first time ``timed``
        is true. Those used lately are kept.
        """
        if self.prepared is None:
            return None
        if self.target.verifies == "chain":
            shape = replace(shape, node_budget=None)
        with self._lock:
            search = self._search(self.prepared, shape, sampling)
            if timed and not search.seconds:
                self._time(search, sampling)
        return self._fitting(search)

    def _fitting(self, source: DraftSource) -> DraftSource:
        """The source, reduced to chains where the target verifies no trees."""
        return ChainSource(source) if self.target.verifies == "chain" else source

    def _search(
        self, prepared: PreparedDrafter, shape: BeamShape, sampling: SamplingConfig
    ) -> BeamSearch:
        # What else there is to sampling, a search does not look at.
        key = shape, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
        if key not in self._searches:
            embed = self.target.embed
            self._searches[key] = BeamSearch(
                prepared, embed, shape, sampling, compiled=fuses_drafts()
            )
            if len(self._searches) > _KEPT_SEARCHES:
                self._searches.popitem(last=False)
        self._searches.move_to_end(key)
        return self._searches[key]

    def _time(self, search: BeamSearch, sampling: SamplingConfig) -> None:
        target = self.target
        target.take_cores(1 + search.shape.nodes)  # as in a step that drafts
        noise = Sampler(sampling, target.vocab_size).noise(0, search.max_depth)
        search.time(self.blank_input(noise))

    def blank_input(self, noise: mx.array | None) -> DraftInput:
        """What a draft might be told, to time drafts with; the text is of some length.

        Args:
            noise: See ``DraftInput``.
        """
        assert self.prepared is not None, "there is no head to time"
        kind = self.target.dtype
        return DraftInput(
            root=mx.zeros((1,), dtype=mx.int32),
            hidden=mx.zeros((self.prepared.state_size,), dtype=kind),
            noise=noise,
            memory=self.memory.blank_view(kind) if self.memory else None,
        )


def check_model(model: Any) -> None:
    """Refuse what is no model of this package's, such as one of mlx-lm's.

    Raises:
        RedrafterError: Naming what it is.
    """
    if not isinstance(model, SpeculativeModel):
        raise RedrafterError(
            "The model has to be one from mlx_redrafter.load, or SpeculativeModel(model) around "
            f"one of mlx-lm's, and is a {type(model).__name__}."
        )


def _source_of(given: Any, vocab_size: int) -> DraftSource:
    """A source of drafts, with all members of one, whose proposals are checked.

    Raises:
        RedrafterError: If it does not propose.
    """
    if not proposes(given):
        raise RedrafterError(
            "The drafter has to be a Drafter (load_drafter reads one from its directory), or a "
            f"DraftSource, and is a {type(given).__name__}."
        )
    if not is_count(given.max_depth) or given.max_depth < 0:
        raise RedrafterError(
            f"A draft source's max_depth has to be a whole number, and is {shown(given.max_depth)}."
        )
    return CheckedSource(as_source(given), vocab_size)


def check_sizes(drafter: Drafter, target: Target) -> None:
    """Refuse a drafter whose sizes are another target's.

    Raises:
        RedrafterError: If hidden size or vocabulary differ.
    """
    config = drafter.config
    for what, has, needs in (
        ("hidden size", config.hidden_size, target.hidden_size),
        ("vocabulary size", config.vocab_size, target.vocab_size),
    ):
        if has != needs:
            raise RedrafterError(
                f"The drafter was made for a {what} of {has}, but this model's is {needs}: "
                "use the drafter that was trained for this model."
            )
