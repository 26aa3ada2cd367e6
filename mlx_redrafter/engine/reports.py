"""Telling a planner how steps went: of plain ones that change nothing soon, several at once.

In a small model a plain step takes a few milliseconds, of which a planner that learns from each by
itself would take two or three per cent.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Protocol

from .shape_planner import ObservedStep, StepPlan
from .step import PendingStep, StepRecord

# No more are held back: what the machine does by now has to be known.
MOST_HELD = 16


class StepListener(Protocol):
    """Who hears of steps: a planner, as far as that concerns reports."""

    @property
    def plan(self) -> StepPlan:
        """See ShapePlanner."""

    def observe(self, step: ObservedStep) -> None:
        """See ShapePlanner."""


class StepReports:
    """Reports of steps, in their order."""

    def __init__(self) -> None:
        self._planner: StepListener | None = None  # that is told
        self._held: list[float] = []  # seconds of quiet steps
        self._records: Tokens[StepRecord] = ()  # of the last of them
        self._context = 0
        self._patience = 0

    @property
    def rests(self) -> bool:
        """Whether the planner said that it drafts nothing before it hears of the next step."""
        return self._patience > len(self._held)

    @property
    def rests_on(self) -> bool:
        """Whether it drafts nothing before it hears of the step after that, either."""
        return self._patience > len(self._held) + 1

    def begin(self, planner: StepListener) -> None:
        """A text begins, of which a planner has heard."""
        self.flush()
        self._planner, self._patience = planner, planner.plan.patience

    def wake(self) -> None:
        """Other texts take part: what the planner said no longer holds."""
        self._patience = 0

    def hold(
        self, pending: Tokens[PendingStep], records: Tokens[StepRecord], seconds: float
    ) -> bool:
        """Count a step that overlapped with the one before it and the one after, if it was plain,
        in the next report. As :meth:`tell` does, but without asking who is to be told.

        Args:
            pending: The step, of each sequence.
            records: How it went.
            seconds: How long it took.

        Returns:
            False where it has to be told; then it is not counted yet.
        """
        if self._is_full_with_next or not all(step.is_quiet for step in pending):
            return False
        self._add(records, max(step.context for step in pending), seconds)
        return True

    @property
    def _is_full_with_next(self) -> bool:
        """Whether the planner has to hear of the next step, and of those held back."""
        return len(self._held) + 1 >= min(MOST_HELD, self._patience)

    def tell(self, planner: StepListener, step: ObservedStep) -> None:
        """Have a planner hear of a step, now or with one of those after it."""
        if planner is not self._planner:
            self.flush()
            self._planner, self._patience = planner, 0
        if step.is_quiet:
            full = self._is_full_with_next
            self._add(step.records, step.context, step.seconds)
            if full:
                self.flush()
            return
        self.flush()
        planner.observe(step)
        self._patience = planner.plan.patience

    def _add(self, records: Tokens[StepRecord], context: int, seconds: float) -> None:
        self._held.append(seconds)
        self._records, self._context = records, context

    def flush(self) -> None:
        """Tell what was held back, at a text's end if not before."""
        if not self._held or self._planner is None:
            return
        repeats = len(self._held)
        step = ObservedStep(
            shape=None,
            records=self._records,
            seconds=sum(self._held) / repeats,
            context=self._context,
            early=True,
            overlapped=True,
            repeats=repeats,
        )
        self._held = []
        self._planner.observe(step)
        self._patience = self._planner.plan.patience
