"""What the engine asks of a planner: the shape of each step, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ..cache.prompt_cache import PromptCache
from ..drafting.copy_memory import CopyMemory
from ..drafting.next_draft import NextDraft
from ..drafting.shape import BeamShape
from ..tree import HostTree
from .copy_pricing import CopyPricing
from .step import PendingStep, StepRecord
from .watch import WatchedDraft

# A planner that never drafts has patience for so many plain steps, see ``StepPlan.patience``.
MOST_PATIENCE = 64


@dataclass(frozen=True)
class ObservedStep:
    """A step that is over, or several plain ones in a row that were alike.

    Attributes:
        shape: What was drafted for it; None for a plain step.
        records: How it went, for each sequence that took part.
        seconds: How long it took; of several each, in the mean.
        context: Tokens of the longest sequence before it.
        next_shape: What was drafted in its graph for the step after it; None for nothing. The
            first step of a kind may have waited for a GPU's compiler, for either draft's sake.
        next_watched: Whether that draft is compared with the text that follows.
        watching: Whether it is not verified, see ``StepPlan.watch``.
        drafted_before: What was drafted for it in the graph of the step before, verified or not;
            None for nothing.
        probing: Whether its draft was made to tell what other shapes would yield, by the plan of
            when that was decided, see ``StepPlan.probing``.
        watched: How watched drafts went that were made before, as far as is known since this step.
        early: Whether it began before the step before it was read.
        overlapped: Whether the step after it did.
        overlapped_draft: What the graph of that step drafts; a CPU may have drafted it by now.
        repeats: How many it stands for.
    """

    shape: BeamShape | None
    records: Sequence[StepRecord]
    seconds: float
    context: int
    next_shape: BeamShape | None = None
    next_watched: bool = False
    watching: bool = False
    drafted_before: BeamShape | None = None
    probing: bool = False
    watched: Sequence[WatchedDraft] = ()
    early: bool = False
    overlapped: bool = False
    overlapped_draft: BeamShape | None = None
    repeats: int = 1

    @classmethod
    def of(
        cls,
        pending: Sequence[PendingStep],
        records: Sequence[StepRecord],
        seconds: float,
        *,
        early: bool,
        following: Sequence[PendingStep],
        watched: Sequence[WatchedDraft],
    ) -> ObservedStep:
        """A step by its parts as they were launched, and those of the step after it, if that began
        before it was read; the rest as in the attributes of this class.
        """
        made, after = _next_draft(pending), _next_draft(following)
        return cls(
            shape=next((step.shape for step in pending if step.shape), None),
            records=records,
            seconds=seconds,
            context=max(step.context for step in pending),
            next_shape=made.shape if made else None,
            next_watched=any(step.watches_next for step in pending),
            watching=made is not None and not made.verified,
            drafted_before=next((s.drafted_before for s in pending if s.drafted_before), None),
            probing=any(step.probing for step in pending),
            watched=watched,
            early=early,
            overlapped=bool(following),
            overlapped_draft=after.shape if after else None,
        )

    @property
    def watched_before(self) -> bool:
        """Whether a draft that was made for it is compared with the text that follows."""
        return any(record.watched for record in self.records)

    # Asked for again and again at every step.
    @cached_property
    def nodes(self) -> int:
        """Candidates verified, of the sequence with most."""
        return max(record.drafted for record in self.records)

    @cached_property
    def tokens(self) -> float:
        """Tokens that the step made, the target's own included: mean over the sequences."""
        return sum(len(record.path) for record in self.records) / len(self.records)

    @property
    def is_plain(self) -> bool:
        """Whether nothing was verified but the roots."""
        return self.shape is None and not self.nodes

    @property
    def is_amid_plain(self) -> bool:
        """Whether it is plain and overlaps with the step before it and the one after."""
        return self.early and self.overlapped and self.is_plain

    @property
    def is_quiet(self) -> bool:
        """Whether it is amid plain steps, and no draft has to do with it or the next one."""
        alone = self.next_shape is None and self.overlapped_draft is None and not self.watched
        return self.is_amid_plain and alone

    @property
    def made(self) -> float:
        """Tokens of all the steps it stands for."""
        return self.repeats * self.tokens

    @property
    def rejected(self) -> float:
        """Share of the sequences that did not accept all that was drafted for them."""
        wrong = sum(record.accepted < record.drafted for record in self.records)
        return wrong / len(self.records)


def _next_draft(pending: Sequence[PendingStep]) -> NextDraft | None:
    """What is known of the draft after a step, by one of its parts."""
    return next((step.next_draft for step in pending if step.next_draft), None)


@dataclass(frozen=True)
class StepPlan:
    """What a planner wants drafted next; none of it need be done.

    Attributes:
        shape: What the next step drafts and verifies; None is a plain step.
        early: Whether drafts are made in the graph of the step before the one that verifies them.
        watched: Whether the draft of ``shape``, if made there, is compared with the text that
            follows: that tells of all of it, however little is verified.
        probing: Whether that draft is to tell what other shapes would yield: no back-off skips it.
        watch: What to draft in the next step's graph only to see how far the text goes along with
            it, once the last such draft is over; None for nothing.
        patience: Plain steps that it may hear of together, since it would draft after none of them.
    """

    shape: BeamShape | None = None
    early: bool = False
    watched: bool = False
    probing: bool = False
    watch: BeamShape | None = None
    patience: int = 0


class ShapePlanner(Protocol):
    """Chooses what to draft, step by step, and learns from how it went.

    What it plans changes with :meth:`begin` and :meth:`observe` alone: until then the plan is the
    same however often it is looked at. Copies are learnt of apart from that, as they are looked
    for (``copies.take_surprise``, ``copied``). Where it has to be measured first what steps cost,
    whatever asks for costs does so, once: ``costs``, and ``copies`` when there are some to price.

    One planner serves all sequences of a model; what concerns a single one, such as plain steps
    after useless drafts (``DraftBackoff``), belongs to the sequence.
    """

    @property
    def costs(self) -> DraftCosts:
        """What drafts cost; measured now, where that was put off."""

    @property
    def plan(self) -> StepPlan:
        """What to draft next; looked at after a step has been observed, before that after a plain
        step, and where drafts are early.
        """

    def for_batch(self, sequences: int) -> ShapePlanner:
        """Who plans the steps that so many sequences take together; of one the planner itself."""

    def begin(self, cache: PromptCache, temperature: float, *, among: bool = False) -> None:
        """A text begins that is drawn at a temperature and whose prompt, all but its last token, is
        in the cache; perhaps among others that are under way.

        What is asked for does not depend on the text otherwise; the cache is left as it is.
        """

    @property
    def copies(self) -> CopyPricing:
        """Who prices copies of the text."""

    @property
    def copied(self) -> CopyMemory:
        """What is learnt of copies, of all texts and whatever steps cost."""

    def plain_speed(self, context: int) -> float | None:
        """Tokens a second of plain decoding after so many tokens, by plain steps as timed; None
        before a few were.
        """

    def guess_chances(self, tree: HostTree) -> list[float]:
        """The chance of each node of a draft to be accepted, 1 for the root."""

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        """How many of a draft's nodes to verify, from the first on; of one made early."""

    def observe(self, step: ObservedStep) -> None:
        """Learn from a step that is over."""

    def reflect(self) -> None:
        """Do work that later answers need, while a step is under way; changes none of them."""

    def price(self, step: ObservedStep) -> float | None:
        """Expected time of an observed step, in plain steps, for the sequences' back-off.

        None where its draft says nothing of how useful drafts are: plain steps and probes.
        """


class DraftCosts(Protocol):
    """What steps and their drafts cost."""

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft of that shape."""
