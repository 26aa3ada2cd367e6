"""Telling a planner how steps went: of plain ones that change nothing soon, several at once.

In a small model a plain step takes a few milliseconds, of which a planner that learns from each by
itself would take two or three per cent.
"""

from __future__ import annotations

from dataclasses import replace

from .shape_planner import ObservedStep, ShapePlanner

# No more are held back: what the machine does by now has to be known.
MOST_HELD = 8


class StepReports:
    """Reports of steps, in their order."""

    def __init__(self) -> None:
        self._planner: ShapePlanner | None = None  # that is told
        self._held: list[ObservedStep] = []
        self._patience = 0

    @property
    def rests(self) -> bool:
        """Whether the planner said that it drafts nothing before it hears of the next step."""
        return self._patience > len(self._held)

    def wake(self) -> None:
        """Other texts take part: what the planner said no longer holds."""
        self._patience = 0

    def tell(self, planner: ShapePlanner, step: ObservedStep) -> None:
        """Have a planner hear of a step, now or with one of those after it."""
        if planner is not self._planner:
            self._flush()
            self._planner, self._patience = planner, 0
        if _is_quiet(step):
            self._held.append(step)
            if len(self._held) < min(MOST_HELD, self._patience):
                return
            self._flush()
        else:
            self._flush()
            planner.observe(step)
        self._patience = planner.patience

    def _flush(self) -> None:
        """Tell what was held back."""
        if not self._held or self._planner is None:
            return
        seconds = sum(step.seconds for step in self._held) / len(self._held)
        self._planner.observe(replace(self._held[-1], seconds=seconds, repeats=len(self._held)))
        self._held = []


def _is_quiet(step: ObservedStep) -> bool:
    """Whether a step is a plain one in the middle of a row of them."""
    return step.early and step.overlapped and step.is_plain and step.next_shape is None
