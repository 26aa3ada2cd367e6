"""What each step took, where one may begin before the one before it has been read."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class StepTimer:
    """Counts the time of every step once.

    Attributes:
        began: Since when the step that is under way is worked at.
        early: Whether it began before the one before it was read.
    """

    began: float = 0.0
    early: bool = False
    _counted: float = 0.0  # up to when time was counted
    _elsewhere: float = 0.0  # time since then that was not this loop's

    def begin(self) -> None:
        """A step begins, with none under way."""
        self.began, self.early = time.perf_counter(), False
        self._elsewhere = 0.0

    def follow(self) -> None:
        """A step begins after one that was counted; what was learnt meanwhile is its time."""
        self.began = self._counted

    def leave_out(self) -> None:
        """What there was until now is not a step's time."""
        self._counted, self._elsewhere = time.perf_counter(), 0.0

    def spend_elsewhere(self, seconds: float) -> None:
        """Leave so much out of the step that is under way."""
        self._elsewhere += seconds

    def count(self, began: float) -> float:
        """Seconds of a step that is over, of which those were its own that no other step has."""
        now = time.perf_counter()
        seconds = now - max(self._counted, began) - self._elsewhere
        self._counted, self._elsewhere = now, 0.0
        return max(0.0, seconds)
