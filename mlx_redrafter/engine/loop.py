"""The decoding loop: draft, verify, choose, accept, commit. Plain decoding is the same loop with
trees that are only a root, and a single text is a batch of one.

A step is one lazy graph with one evaluation. Two things make the next step begin before one has
been read: a plain step after a plain one is started early, so that the two overlap; and the next
step's draft may be made in this step's graph (``NextDraft``), so that it can be read, and as much
of it verified as is worth it, without a further evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from contextlib import nullcontext
from dataclasses import replace

import mlx.core as mx

from ..cache.batch import BatchCache
from .choose import ChosenDrafts, DraftChooser, may_end
from .copying import StepDraft
from .launch import StepLauncher, blank_rows, caches_of
from .lockstep import agreed_seconds
from .model import SpeculativeModel
from .reports import StepReports
from .sequence import Sequence
from .shape_planner import ObservedStep
from .shared_planner import SharedPlanner
from .step import DecodedToken, PendingStep, StepRecord
from .step_timer import StepTimer

CLEAR_CACHE_EVERY = 256


class DecodingLoop:
    """Takes the steps of sequences that share a forward; what is their own is in the Sequence.

    Args:
        model: Target and drafter.
        planner: Chooses what to draft; None drafts each sequence's own shape.

    Attributes:
        sequences: Those that take part, in the order of the batch.
        batch: What they have left in the target; None where one sequence has caches of its own.
    """

    def __init__(self, model: SpeculativeModel, planner: SharedPlanner | None = None):
        self._model = model
        self._target = model.target
        self._planner = planner
        self._launcher = StepLauncher(model, planner.draft_seconds if planner else None)
        self._reports = StepReports()
        self._chooser = DraftChooser(model, planner, self._reports)
        self.sequences: list[Sequence] = []
        self.batch: BatchCache | None = None
        self._pending: list[PendingStep] = []
        # The last step that was read, and what to draft after it where that is decided.
        self._last: tuple[list[PendingStep], ChosenDrafts | None] | None = None
        self._timer = StepTimer()
        self._to_clear = CLEAR_CACHE_EVERY

    def begin(self, sequence: Sequence, *, among: bool = False) -> None:
        """Let a sequence whose prompt is read be the one that takes part.

        Args:
            sequence: It.
            among: Whether other texts are under way, of which none has ended since one began.
        """
        if self._planner is not None and sequence.drafts:
            temperature = sequence.config.sampling.temperature
            with sequence.holding_cache():
                self._planner.begin(sequence.cache, temperature, among=among)
        self.compose([], [sequence])
        planner = self._chooser.planner_of(self.sequences)
        if planner is not None:
            self._reports.begin(planner)

    def step(self, *, goes_on: bool = True) -> dict[Sequence, list[DecodedToken]]:
        """Take a step of all sequences.

        Args:
            goes_on: Whether the next step is of the same sequences, and may begin at once.

        Returns:
            The tokens that it made, for each sequence that had not ended before.
        """
        # Those of a batch have no caches that anything else could use.
        alone = self.sequences[0].holding_cache() if self.batch is None else nullcontext()
        with self._model.computing(), alone:
            return self._step(goes_on=goes_on)

    def _step(self, *, goes_on: bool) -> dict[Sequence, list[DecodedToken]]:
        if not self._pending:
            self._timer.begin()
        began, early = self._timer.began, self._timer.early
        # 1 draft, 2 verify, 3 choose: all launched at once, mostly at the end of the step before.
        pending = self._trusted(self._pending or self._follow(goes_on=goes_on))
        after_prompt = not any(sequence.emitted for sequence in self.sequences)
        self._pending, self._last = [], None
        # Decided as late as can be: only after a plain step may the next one overlap.
        plain = all(step.is_plain for step in pending)
        chosen = self._chooser.choose(self.sequences, pending) if plain and goes_on else None
        self._timer.early = chosen is not None and self._may_overlap(chosen)
        if chosen is not None and self._timer.early:
            self._pending = self._overlap(pending, chosen)
        # 4 accept
        ended = [sequence.finish_reason is not None for sequence in self.sequences]
        records = [s.read(step) for s, step in zip(self.sequences, pending, strict=True)]
        if after_prompt:
            self._timer.leave_out()  # the prompt's time
        made = {
            sequence: sequence.decoded(step, record)
            for sequence, step, record, over in zip(
                self.sequences, pending, records, ended, strict=True
            )
            if not over
        }
        # 5 commit
        if not self._pending:
            self._commit(pending, records, made)
        if not after_prompt:
            self._observe(pending, records, made, began, early=early)
        if not self._pending and not any(s.finish_reason for s in self.sequences):
            self._last = pending, chosen
            # The next step begins before tokens are handed out, so that reading them overlaps with
            # it. A CPU may hold up its beginning, for which the first token does not wait.
            if goes_on and not after_prompt:
                self._timer.follow()
                self._pending = self._follow()
                self._chooser.reflect(self.sequences)
        if not self._pending:
            # Another thread may take the next step.
            if after_prompt:  # to keep a root changes nothing but what a head remembers
                kept = [s.cache.memory.state for s in self.sequences if s.cache.memory]
            else:
                kept = caches_of(self.sequences, self.batch)
            if kept:
                mx.async_eval(kept)
        self._clear(sum(map(len, made.values())))
        return made

    # Drafting, verifying, choosing

    def _follow(self, *, goes_on: bool = True) -> list[PendingStep]:
        """Launch the step after the one that was read last."""
        chooser, sequences = self._chooser, self.sequences
        if self._last is None and not any(sequence.emitted for sequence in sequences):
            return self._launch([StepDraft() for _ in sequences], goes_on=goes_on)
        pending, chosen = self._last or ([], None)
        chosen = chooser.choose(sequences, pending) if chosen is None else chosen
        drafts = chooser.drafts(sequences, chosen, pending)
        # A draft that ends the text is mostly right, and then another after it would be wasted.
        ends = any(step.next_draft for step in pending) and all(map(may_end, sequences, drafts))
        launched = self._launch(drafts, chosen, goes_on=goes_on and not ends)
        return [replace(step, probing=True) for step in launched] if chosen.probing else launched

    def _trusted(self, pending: list[PendingStep]) -> list[PendingStep]:
        """A step as it is, or a plain one in its place where a branch computed no numbers."""
        if all(step.is_trustworthy for step in pending):
            return pending
        self._pending = []
        for sequence, step in zip(self.sequences, pending, strict=True):
            if step.watches_next:
                sequence.watch.cancel()
        blank_rows(self.sequences, self.batch, len(pending[0].tree))
        return self._launch([StepDraft() for _ in pending], goes_on=False)

    def _launch(
        self, drafts: list[StepDraft], chosen: ChosenDrafts | None = None, *, goes_on: bool = True
    ) -> list[PendingStep]:
        """Start a step; if there is likely to be one after it, that may be drafted with it."""
        self._model.mark()
        if chosen is not None and chosen.paused:
            for sequence in self.sequences:
                sequence.backoff.paused()
        following = self._chooser.next_drafts(self.sequences, drafts) if goes_on else None
        return self._launcher.launch(self.sequences, self.batch, drafts, following)

    # Accepting, committing

    def _commit(
        self,
        pending: list[PendingStep],
        records: list[StepRecord],
        made: dict[Sequence, list[DecodedToken]],
    ) -> None:
        """Keep what became text."""
        for sequence, step, record in zip(self.sequences, pending, records, strict=True):
            # One that has ended before is only carried along: its root alone is kept.
            sequence.commit(step, record, len(made.get(sequence, (None,))))
        if self.batch is not None:
            self.batch.commit()

    def _may_overlap(self, chosen: ChosenDrafts) -> bool:
        """Whether a plain step may start before the plain one before it is read."""
        going_on = [
            sequence.emitted + 1 != sequence.config.max_tokens for sequence in self.sequences
        ]
        return (
            not any(chosen.shapes)
            and any(going_on)
            and all(sequence.cache.can_discard for sequence in self.sequences)
            and not any(sequence.finish_reason for sequence in self.sequences)
            and not self._chooser.waits(self.sequences)
        )

    def _overlap(self, pending: list[PendingStep], chosen: ChosenDrafts) -> list[PendingStep]:
        """Start a plain step after a plain one that is not read yet."""
        for sequence, step in zip(self.sequences, pending, strict=True):
            sequence.commit_root(step)
            sequence.follow(step)
        if self.batch is not None:
            self.batch.commit()
        return self._launch([StepDraft() for _ in pending], chosen)

    def _observe(
        self,
        pending: list[PendingStep],
        records: list[StepRecord],
        made: dict[Sequence, list[DecodedToken]],
        began: float,
        *,
        early: bool,
    ) -> None:
        """Count a step that is over, and tell the planner."""
        seconds = self._timer.count(began)
        tokens = [token.token for own in made.values() for token in own]
        seconds = agreed_seconds(self._model.ranks, seconds, tokens)
        drafting, watched = [], []
        for sequence, step, record in zip(self.sequences, pending, records, strict=True):
            if sequence in made:
                sequence.count(step, record, len(made[sequence]), seconds)
                if sequence.drafts or sequence.copies:
                    drafting.append((sequence, record))
                watched += sequence.watch.take()
        ended = any(sequence.finish_reason for sequence in made)
        told = [record for _, record in drafting]
        amid = early and bool(self._pending) and not ended and not watched
        if not told or (amid and self._reports.hold(pending, told, seconds)):
            return
        planner = self._chooser.planner_of(self.sequences)
        if planner is None:
            return
        observed = ObservedStep.of(
            pending, told, seconds, early=early, following=self._pending, watched=watched
        )
        self._reports.tell(planner, observed)
        if ended:
            self._reports.flush()
        price = planner.price(observed) if observed.shape else None
        if price is not None:
            for sequence, record in drafting:
                sequence.backoff.drafted(price, len(record.path))

    def _clear(self, tokens: int) -> None:
        """Give memory back now and then."""
        self._to_clear -= tokens
        if self._to_clear <= 0:
            self._to_clear = CLEAR_CACHE_EVERY
            mx.clear_cache()

    # Who takes part

    @property
    def idle(self) -> bool:
        """Whether no step is under way, so that sequences may join and leave."""
        return not self._pending

    def spent_elsewhere(self, seconds: float) -> None:
        """Leave out of a step that is under way the time of a prompt that was read meanwhile."""
        if self._pending:
            self._timer.spend_elsewhere(seconds)

    def discard(self) -> None:
        """Forget a step that is under way: none of its sequences goes on."""
        self._pending = []

    def close(self) -> None:
        """No further step is taken; the planner hears of those that it was not told of yet.

        Not where ranks decode together: the garbage collector closes abandoned texts when it likes,
        and planners that hear of steps at different times draft differently.
        """
        self.discard()
        if self._planner is not None and self._model.ranks is None:
            self._planner.if_free(self._reports.flush)

    def compose(self, leaving: Iterable[Sequence], joining: Tokens[Sequence]) -> None:
        """Let sequences leave and others, whose prompts are read, join after those that stay.

        Raises:
            RedrafterError: If the model's texts have to be decoded one by one.
        """
        assert self.idle, "a step is under way"
        gone = set(leaving)
        places = [place for place, s in enumerate(self.sequences) if s not in gone]
        staying = [self.sequences[place] for place in places]
        if not joining and len(staying) == len(self.sequences):
            return
        self._last = None
        self._reports.wake()
        self.sequences = [*staying, *joining]
        if not self.sequences:
            self.batch = None
            return
        if self.batch is None:
            if len(self.sequences) == 1:
                return
            self.batch, places, joining = self._target.make_batch_cache(), [], self.sequences
        self.batch.compose(places, [sequence.cache for sequence in joining])
        for sequence, row in zip(self.sequences, self.batch.rows, strict=True):
            sequence.cache, row.user = row, sequence
