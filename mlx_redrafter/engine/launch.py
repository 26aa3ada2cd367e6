"""A step's graph: draft, verify, choose, and perhaps the next step's draft; one evaluation."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..cache.batch import BatchCache
from ..choices import NO_TOKEN, Choices
from ..drafting.chain import chain_of
from ..drafting.combined import combine, draft_together
from ..drafting.next_draft import NextDraft
from ..drafting.shape import BeamShape
from ..drafting.source import DraftSource
from ..tree import DraftTree
from .copying import StepDraft
from .model import SpeculativeModel
from .sequence import Sequence
from .step import PendingStep


@dataclass(frozen=True)
class PlannedDrafts:
    """What a step drafts for the one after it.

    Attributes:
        shape: The shape; None: the next step is plain.
        sources: Who drafts it for each sequence; None: nobody.
        resting: Whether the step after that one is known to be plain as well.
        watched, verified, probing: What the drafts are for, see ``NextDraft``.
        paused: Why there may be none, see there.
    """

    shape: BeamShape | None
    sources: Tokens[DraftSource | None]
    resting: bool = False
    watched: bool = False
    verified: bool = True
    probing: bool = False
    paused: bool = False

    @property
    def depth(self) -> int:
        """No node is deeper."""
        return max((source.max_depth for source in self.sources if source), default=0)


class StepLauncher:
    """Launches the steps of sequences that share a forward.

    Args:
        model: Its target verifies.
        draft_seconds: What a draft of a shape takes, measured alone; None: its sources know.
    """

    def __init__(
        self, model: SpeculativeModel, draft_seconds: Callable[[BeamShape], float] | None = None
    ):
        self._target = model.target
        self._memory = model.memory
        self._seconds_of = draft_seconds

    def launch(
        self,
        sequences: Tokens[Sequence],
        batch: BatchCache | None,
        drafts: Tokens[StepDraft],
        following: PlannedDrafts | None,
    ) -> list[PendingStep]:
        """Start a step: draft (where a shape is given and no tree), verify, choose.

        Args:
            sequences: Those that take part.
            batch: What they have left in the target; None for a single sequence with its own.
            drafts: What to draft, or was drafted, for each sequence.
            following: What to draft for the step after it; None: that is not decided yet.
        """
        sources = [
            s.sources_for(draft.shape, timed=self._seconds_of is None)
            if draft.shape and s.can_draft
            else []
            for s, draft in zip(sequences, drafts, strict=True)
        ]
        depth = max((source.max_depth for own in sources for source in own), default=0)
        depth = max(depth, *(draft.max_depth for draft in drafts))
        more = following.depth if following else 0
        noises = [sequence.noise(depth + more) for sequence in sequences]
        # Where the kind of cache changes, tokens are verified one by one.
        if depth and any(sequence.cache.changes_within(depth) for sequence in sequences):
            sources, drafts = [[] for _ in sources], [StepDraft() for _ in drafts]
        own, copied = self._draft(sequences, sources, drafts, noises)  # 1 draft
        trees = _of_one_size(own)
        logits, hidden = self._verify(sequences, batch, trees)  # 2 verify
        if any(sequence.is_constrained for sequence in sequences):
            mx.async_eval(logits)  # while the host finds out what may follow
        finite = [_finite(tree, states) for tree, states in zip(trees, hidden, strict=True)]
        if any(s.asks_caller for s in sequences) and not _all_true(finite, logits):
            # A caller's function hears of each token once, so not of a step that is taken again.
            blank_rows(sequences, batch, len(trees[0]))
            return self.launch(sequences, batch, [StepDraft() for _ in drafts], None)
        plain_next = _plain(following)
        resting = following is not None and following.resting
        pending = []
        for place, sequence in enumerate(sequences):
            tree, noise, drafted = trees[place], noises[place], bool(sources[place])
            asked = own[place] if sequence.needs_tokens or sequence.asks_caller else tree
            choices = _choices(sequence, logits[place], tree, asked, noise, resting)  # 3 choose
            shape = drafts[place].shape if drafted and len(tree) > 1 else None
            made_before = drafts[place].made_before
            step = PendingStep(
                tree=tree,
                size=len(own[place]),
                choices=choices,
                hidden=hidden[place],
                shape=shape,
                context=len(sequence.cache),
                draft_seconds=self._draft_seconds(shape or made_before, sources[place]),
                drafted_before=made_before,
                watched=drafts[place].watched,
                copied=copied[place],
                cut=drafts[place].cut,
                finite=finite[place],
                next_draft=plain_next,
            )
            pending.append(step)
        if following is not None and plain_next is None:
            pending = self._draft_next(sequences, pending, noises, following)
        kept = [step.kept for step in pending], caches_of(sequences, batch)
        mx.async_eval([step.read_back for step in pending], kept)
        return pending

    def _draft(
        self,
        sequences: Tokens[Sequence],
        sources: list[list[DraftSource]],
        drafts: Tokens[StepDraft],
        noises: list[mx.array | None],
    ) -> tuple[list[DraftTree], list[frozenset[int]]]:
        """A tree for each sequence; which of its nodes only a copy proposed."""
        trees = [
            draft.tree or DraftTree.root_only(sequence.root)
            for sequence, draft in zip(sequences, drafts, strict=True)
        ]
        copied = [draft.copied for draft in drafts]
        wanted, states, own = [], [], []
        for place, proposing in enumerate(sources):
            rest = proposing[1:] if drafts[place].tree is not None else proposing
            if rest:
                wanted.append(place)
                own.append(rest)
                states.append(sequences[place].draft_input(noises[place]))
        for place, tree in zip(wanted, draft_together(own, states), strict=True):
            draft = drafts[place]
            if draft.tree is not None:
                both = combine(draft.tree, tree)
                whole, copied[place] = both.tree, both.places(draft.copied)
            else:
                whole, copied[place] = draft.complete(tree)
            if len(sources[place]) > 1 and self._target.verifies == "chain":
                whole, copied[place] = chain_of(whole), frozenset()  # what it holds is not known
            trees[place] = whole
        for place, sequence in enumerate(sequences):
            tree = trees[place]
            # Recurrent modules run every path that a tree may have: to read it first costs less
            # than to assume the most that its shape allows.
            if self._target.recurrent and tree.leaf_bound > 1:
                trees[place] = tree.first(len(tree) - 1, tree.read())
            elif sequence.needs_tokens and len(tree) > 1:
                trees[place] = replace(tree, known=tree.read())
        return trees, copied

    def _verify(
        self, sequences: Tokens[Sequence], batch: BatchCache | None, trees: list[DraftTree]
    ) -> tuple[list[mx.array], list[mx.array]]:
        """Logits at the nodes of each tree, and what drafts start from there; of one forward."""
        layers = self._memory.layers if self._memory else ()
        fused = self._memory.fused if self._memory else lambda hidden: hidden
        if batch is None:
            (sequence,), (tree,) = sequences, trees
            logits, hidden = self._target.verify(tree, sequence.cache, layers)
            return [logits], [fused(hidden)]
        logits, hidden = self._target.verify_batch(trees, batch, layers)
        return list(logits), list(fused(hidden))

    def _draft_next(
        self,
        sequences: Tokens[Sequence],
        pending: list[PendingStep],
        noises: list[mx.array | None],
        following: PlannedDrafts,
    ) -> list[PendingStep]:
        """The same steps with the drafts of the next one, which begin where these will end."""
        places, states, sources = [], [], []
        for place, (sequence, step) in enumerate(zip(sequences, pending, strict=True)):
            source = following.sources[place]
            if source is None:
                continue
            places.append(place)
            sources.append([source])
            states.append(sequence.next_draft_input(step, noises[place], source))
        result = list(pending)
        trees = draft_together(sources, states)
        for place, own, tree in zip(places, sources, trees, strict=True):
            step = pending[place]
            watched = following.watched and sequences[place].watch.idle
            draft = NextDraft(following.shape, tree, watched, following.verified, following.probing)
            seconds = step.draft_seconds
            if watched:
                sequences[place].watch.launch()
            if not following.verified:  # no other step will count it
                seconds += self._draft_seconds(following.shape, own)
            result[place] = replace(step, next_draft=draft, draft_seconds=seconds)
        return result

    def _draft_seconds(self, shape: BeamShape | None, sources: list[DraftSource]) -> float:
        """How long a draft takes, measured alone."""
        if shape is None:
            return 0.0
        if self._seconds_of is not None:
            return self._seconds_of(shape)
        return sum(source.seconds for source in sources)


def _plain(following: PlannedDrafts | None) -> NextDraft | None:
    """That the next step drafts nothing, where that is decided."""
    if following is None or following.shape is not None:
        return None
    return NextDraft(None, None, paused=following.paused)


def _choices(
    sequence: Sequence,
    logits: mx.array,
    tree: DraftTree,
    asked: DraftTree,
    noise: mx.array | None,
    resting: bool,
) -> Choices:
    """The choices after a tree's nodes; after those that are only in ``tree``, none."""
    few = len(asked) < len(tree)
    rows = logits[: len(asked)] if few else logits
    choices = sequence.choose(rows, asked, noise, resting=resting)
    return choices.padded(len(tree)) if few else choices


def _finite(tree: DraftTree, states: mx.array) -> mx.array | None:
    """Whether all hidden states at the nodes of a tree are numbers, see ``PendingStep``."""
    return None if len(tree) == 1 else mx.all(mx.abs(states) < mx.inf)


def _all_true(finite: list[mx.array | None], logits: list[mx.array]) -> bool:
    """Whether all are true, as far as known; the logits are evaluated with them."""
    known = [one for one in finite if one is not None]
    if not known:
        return True
    mx.eval(known, logits)
    return all(one.item() for one in known)


def _of_one_size(trees: list[DraftTree]) -> list[DraftTree]:
    """The trees, the smaller ones with further leaves.

    These are of no token, so that none is accepted: they are no drafts, and a caller's function
    does not hear of them.
    """
    size = max(len(tree) for tree in trees)
    return [tree.padded(size, NO_TOKEN) for tree in trees]


def blank_rows(sequences: Tokens[Sequence], batch: BatchCache | None, rows: int) -> None:
    """Clear the rows of a step that is taken again, since they may hold what is no number."""
    if batch is not None:
        batch.blank(rows)
        return
    for leaf in (leaf for layer in sequences[0].cache.layers for leaf in layer.leaves):
        leaf.blank(rows)


def caches_of(sequences: Tokens[Sequence], batch: BatchCache | None) -> list[Any]:
    """What the caches hold, to evaluate, so that nothing is left that only one thread could."""
    return batch.state if batch is not None else sequences[0].cache.state
