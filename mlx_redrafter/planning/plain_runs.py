"""What plain steps that overlap took, each by itself.

A plain step after a plain one begins before that is read. On a CPU its launch waits for most of its
forward, so that of several in a row the first takes the time of two forwards and the last hardly
any; only those in between take their own.
"""

from __future__ import annotations

from ..engine.shape_planner import ObservedStep
from .clocks import ALONE, PLAIN


class PlainRuns:
    """Steps as the clocks are to see them."""

    def __init__(self) -> None:
        self._first: float | None = None  # seconds of the first of several plain steps

    def seen(self, step: ObservedStep) -> tuple[int, float] | None:
        """(kind, seconds) of a step, see :class:`Clocks`; None where it tells nothing by itself.

        The last of several plain steps stands for itself and the first of them, half their time.
        One that made a draft to be watched is no plain step's time.
        """
        if step.watching:
            self._first = None
            return None
        if not step.is_plain:
            return 1 + step.nodes, step.seconds
        if step.is_amid_plain:
            return PLAIN, step.seconds
        if step.overlapped:
            self._first = step.seconds
            return None
        if not step.early:
            return ALONE, step.seconds
        first, self._first = self._first, None
        return None if first is None else (ALONE, (first + step.seconds) / 2)
