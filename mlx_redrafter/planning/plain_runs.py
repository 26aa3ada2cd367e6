"""What plain steps that overlap took, each by itself.

A plain step after a plain one begins before that is read. On a CPU its launch waits for most of its
forward, so that of several in a row the first takes the time of two forwards and the last hardly
any; only those in between take their own. The same launch makes a draft that stands in the step's
graph, so that the time of that is in the step before.
"""

from __future__ import annotations

from ..engine.shape_planner import ObservedStep
from .clocks import ALONE, PLAIN


class PlainRuns:
    """Steps as the clocks are to see them."""

    def __init__(self) -> None:
        # Seconds of the first of several plain steps, and of a draft that one in between has made.
        self._first: float | None = None

    def seen(self, step: ObservedStep, seconds: float, plain: float) -> tuple[int, float] | None:
        """(kind, seconds) of a step, see :class:`Clocks`; None where it tells nothing by itself.

        The last of several plain steps stands for itself and the first of them, half their time.
        One that made a draft to be watched is no plain step's time.

        Args:
            step: How it went.
            seconds: What it took, its own draft counted and none that it made for the next one.
            plain: Seconds of a plain step by now.
        """
        if step.watching:
            self._first = None
            return None
        if not step.is_plain:
            return 1 + step.nodes, seconds
        if step.is_amid_plain:
            if step.overlapped_draft is None:
                return PLAIN, seconds
            if self._first is not None:
                self._first += seconds - plain
            return None
        if step.overlapped:
            self._first = seconds
            return None
        if not step.early:
            return ALONE, seconds
        first, self._first = self._first, None
        return None if first is None else (ALONE, (first + seconds) / 2)
