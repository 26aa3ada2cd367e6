"""What a step drafts and verifies: the planner's shapes, drafts made in advance, and copies."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace

from ..drafting.shape import BeamShape
from ..tree import DraftTree, HostTree
from .copy_pricing import BudgetedCopies, CopyPricing
from .copying import SequenceCopies, StepCopies, StepDraft, copied_on
from .launch import PlannedDrafts
from .model import SpeculativeModel
from .reports import StepReports
from .sequence import Sequence
from .shape_planner import ShapePlanner, StepPlan
from .step import PendingStep

Shapes = Tokens[BeamShape | None]


@dataclass(frozen=True)
class ChosenDrafts:
    """What a step drafts.

    Attributes:
        shapes: Of each sequence; None: its step drafts nothing.
        probing: Whether the drafts are to tell what other shapes would yield, see ``StepPlan``.
        paused: Whether there are none since those of late failed.
    """

    shapes: Shapes
    probing: bool = False
    paused: bool = False


class DraftChooser:
    """Chooses what sequences that share a forward draft, and how much of it is verified.

    Args:
        model: Target and drafter.
        planner: Chooses shapes and prices copies; None drafts each sequence's own shape.
        reports: Know for how many steps it will draft nothing.
    """

    def __init__(self, model: SpeculativeModel, planner: ShapePlanner | None, reports: StepReports):
        self._reports = reports
        self._model = model
        self._target = model.target
        self._planner = planner

    def planner_of(self, sequences: Tokens[Sequence]) -> ShapePlanner | None:
        """Who plans the steps of so many sequences; None where nobody does, or drafts."""
        if self._planner is None or not any(s.drafts or s.copies for s in sequences):
            return None
        return self._planner.for_batch(len(sequences))

    def choose(
        self, sequences: Tokens[Sequence], pending: Tokens[PendingStep] = ()
    ) -> ChosenDrafts:
        """What each sequence drafts in the next step; it may have been decided with the last."""
        decided = [step.next_draft for step in pending]
        if any(decided):
            shapes = [draft.to_verify if draft else None for draft in decided]
            known = [draft for draft in decided if draft]
            return ChosenDrafts(
                shapes, any(one.probing for one in known), any(one.paused for one in known)
            )
        if self._planner is None:
            return ChosenDrafts([s.config.beam if s.drafts else None for s in sequences])
        # To look at the plan is dear beside a small model's step.
        planner = None if self._reports.rests else self.planner_of(sequences)
        if planner is None:
            return ChosenDrafts([None for _ in sequences])
        plan = planner.plan
        shape, paused = _draftable(plan, sequences)
        shapes = [shape if s.drafts else None for s in sequences]
        return ChosenDrafts(shapes, plan.probing and shape is not None, paused)

    def drafts(
        self, sequences: Tokens[Sequence], chosen: ChosenDrafts, pending: Tokens[PendingStep] = ()
    ) -> list[StepDraft]:
        """What to verify of the next step's drafts and copies.

        Args:
            sequences: Those that take part.
            chosen: What each drafts, or has drafted.
            pending: Their steps before, whose graphs the drafts may have been made in.
        """
        shapes = chosen.shapes
        made: list[DraftTree | None] = [None for _ in shapes]
        for place, step in enumerate(pending):
            draft = step.next_draft
            made[place] = draft.tree if draft and draft.to_verify else None
        planner, copies = self.planner_of(sequences), self._copies(sequences)
        if not any(made):
            if copies is None or not copies.found or chosen.probing:
                return [StepDraft(shape) for shape in shapes]
            return copies.with_drafts_to_make(shapes)
        assert planner is not None
        known, useful = _read(sequences, made)
        if copies is None or not copies.found or chosen.probing:
            result = _trimmed(planner, sequences, shapes, made, known, useful)
        else:
            chances = [planner.guess_chances(tree) if tree else [1.0] for tree in useful]
            result = copies.with_known_drafts(shapes, useful, chances)
        return [
            replace(draft, cut=part is not whole, watched=step.watches_next)
            for draft, part, whole, step in zip(result, useful, known, pending, strict=True)
        ]

    def next_drafts(
        self, sequences: Tokens[Sequence], drafts: Tokens[StepDraft]
    ) -> PlannedDrafts | None:
        """What the step after the one to be launched drafts, if it is to be drafted with it.

        Args:
            sequences: Those that take part.
            drafts: What the step to be launched verifies.
        """
        if self._reports.rests_on:
            return PlannedDrafts(None, [None for _ in sequences], resting=True)
        planner = self.planner_of(sequences)
        if planner is None or not self._model.drafts_early:
            return None
        plan = planner.plan
        unverified = _watched(plan, sequences)
        if unverified is not None or not plan.early:
            return unverified
        shape, paused = (None, False) if self._reports.rests else _draftable(plan, sequences)
        copied = copied_on(drafts)
        copies_go_on = shape and copied and not plan.probing
        if shape and copies_go_on and not planner.copies.drafts_after(copied, shape):
            return None
        sources = [
            s.sources_for(shape, timed=False)[0] if shape and s.drafts else None for s in sequences
        ]
        drafting = shape is not None
        watched, probing = plan.watched and drafting, plan.probing and drafting
        return PlannedDrafts(shape, sources, watched=watched, probing=probing, paused=paused)

    def reflect(self, sequences: Tokens[Sequence]) -> None:
        """Have the planner think while a step is under way."""
        planner = self.planner_of(sequences)
        if planner is not None:
            planner.reflect()

    def waits(self, sequences: Tokens[Sequence]) -> bool:
        """Whether the next step has to wait for this one's token, since it may verify copies."""
        copying = _copying(sequences)
        if all(copies.rests for copies in copying):
            return False
        step = self._copies(sequences)
        return step is not None and step.waits

    def _copies(self, sequences: Tokens[Sequence]) -> StepCopies | None:
        """What the sequences may copy, if only nothing; None where none of them copies."""
        copying = _copying(sequences)
        if not copying:
            return None
        proposals = [sequence.propose_copies() for sequence in sequences]
        surprised = [copies.take_surprise() for copies in copying]
        roots = [sequence.last_token for sequence in sequences]
        chain = self._target.verifies == "chain"
        pricing, context = self._pricing(sequences), context_of(sequences)
        step = StepCopies(pricing, proposals, roots, context, chain=chain)
        if any(surprised):
            step.take_surprise()
        return step

    def _pricing(self, sequences: Tokens[Sequence]) -> CopyPricing:
        """Who prices copies: the planner's, or none but the shapes' numbers of nodes."""
        planner = self.planner_of(sequences)
        if planner is not None:
            return planner.copies
        return BudgetedCopies(min(s.config.beam.nodes for s in sequences))


def _copying(sequences: Tokens[Sequence]) -> list[SequenceCopies]:
    """What proposes copies, of the sequences that have them."""
    return [sequence.copies for sequence in sequences if sequence.copies is not None]


def context_of(sequences: Tokens[Sequence]) -> int:
    """Committed tokens of the longest sequence."""
    return max(len(sequence.cache) for sequence in sequences)


def _draftable(plan: StepPlan, sequences: Tokens[Sequence]) -> tuple[BeamShape | None, bool]:
    """The plan's shape, None where it cannot be verified or drafts are paused; whether they are."""
    shape, drafting = plan.shape, [s for s in sequences if s.drafts]
    if shape is None or not drafting:
        return None, False
    if any(sequence.cache.changes_within(shape.length) for sequence in drafting):
        return None, False
    # A step is plain for all of a batch or for none.
    pausing = sum(sequence.backoff.pausing for sequence in drafting)
    if plan.probing or 2 * pausing < len(drafting):
        return shape, False
    return None, True


def _watched(plan: StepPlan, sequences: Tokens[Sequence]) -> PlannedDrafts | None:
    """A draft that is only watched; None where the plan has none, or the last is not over."""
    if plan.watch is None or len(sequences) != 1:
        return None
    (sequence,) = sequences
    if not (sequence.drafts and sequence.emitted and sequence.watch.idle):
        return None
    sources = sequence.sources_for(plan.watch, timed=False)[:1]
    return PlannedDrafts(plan.watch, sources, watched=True, verified=False)


def _read(
    sequences: Tokens[Sequence], made: Tokens[DraftTree | None]
) -> tuple[list[HostTree | None], list[HostTree | None]]:
    """Drafts that were made with the step before, and what of each may become text."""
    known = [tree.read() if tree else None for tree in made]
    useful = [
        sequence.useful_part(tree) if tree else None
        for sequence, tree in zip(sequences, known, strict=True)
    ]
    return known, useful


def _trimmed(
    planner: ShapePlanner,
    sequences: Tokens[Sequence],
    shapes: Shapes,
    made: Tokens[DraftTree | None],
    known: Tokens[HostTree | None],
    useful: Tokens[HostTree | None],
) -> list[StepDraft]:
    """What is worth verifying of drafts that were made in the step before."""
    count = max(
        planner.num_nodes_to_verify(part, len(sequence.cache))
        for sequence, part in zip(sequences, useful, strict=True)
        if part
    )
    trees = [
        _first(tree, whole, part, count) if tree and whole and part else None
        for tree, whole, part in zip(made, known, useful, strict=True)
    ]
    return [StepDraft(shape, tree) for shape, tree in zip(shapes, trees, strict=True)]


def _first(tree: DraftTree, whole: HostTree, useful: HostTree, count: int) -> DraftTree:
    """The root and the first ``count`` useful nodes of a draft, or as many as there are."""
    if useful is not whole:
        tree = DraftTree.from_parents(useful.tokens, useful.parents, useful.log_probs)
    return tree.first(min(count, len(tree) - 1), useful)


def may_end(sequence: Sequence, draft: StepDraft) -> bool:
    """Whether a text's draft ends it; that of a text without one is taken to."""
    if draft.tree is None:
        return True
    return not sequence.config.eos_token_ids.isdisjoint(draft.tree.read().tokens)
