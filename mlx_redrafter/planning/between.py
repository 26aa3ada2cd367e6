"""Steps that stood between two like ones of another kind: how kinds differ on any machine.

A step that takes longer than the one before it may be of a dearer kind, or the machine may have
slowed down at that moment. Where the steps before and after it were alike the machine was as well,
and what stood between them shows its kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

# The steps before and after may differ by this much, as a logarithm.
ALIKE = 0.1
# Steps of a run that are looked at, the last ones.
LOOKED_AT = 4
# Runs of other kinds between two like ones, at most.
RUNS_BETWEEN = 2


@dataclass
class Run:
    """Steps of one kind in a row.

    Attributes:
        kind: What they have in common.
        steps: Rows of each, and the logarithm of its time over what was measured.
    """

    kind: int
    steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))

    def level(self, own: Callable[[int], float]) -> float:
        """What the machine's part would be of their times, in the mean, given their kinds' own."""
        return sum(time - own(rows) for rows, time in self.steps) / len(self.steps)


@dataclass(frozen=True)
class Difference:
    """A kind that stood between two like ones.

    Attributes:
        rows: Of its last step.
        excess: By how much it takes longer than was thought, beside them, as a logarithm.
    """

    rows: int
    excess: float


class Between:
    """The last runs of steps."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque(maxlen=2 + RUNS_BETWEEN)

    def forget(self) -> None:
        """What was seen does not count any more."""
        self._runs.clear()

    def take(
        self, kind: int, rows: int, time: float, own: Callable[[int], float]
    ) -> list[Difference]:
        """A step was taken.

        Args:
            kind: Of the step.
            rows: See :class:`Clocks`.
            time: The logarithm of its time over what was measured.
            own: The part of a number of rows, as known by now.

        Returns:
            What is known of the kinds before it; nothing where the step is like the one before, or
            none like it stood shortly before.
        """
        if self._runs and self._runs[-1].kind == kind:
            self._runs[-1].steps.append((rows, time))
            return []
        runs = list(self._runs)
        now = Run(kind)
        now.steps.append((rows, time))
        self._runs.append(now)
        for place in reversed(range(len(runs))):
            if runs[place].kind == kind:
                return self._compare(runs[place], runs[place + 1 :], now, own)
        return []

    @staticmethod
    def _compare(
        before: Run, between: list[Run], after: Run, own: Callable[[int], float]
    ) -> list[Difference]:
        first, last = before.level(own), after.level(own)
        if abs(last - first) > ALIKE:
            return []
        beside = (first + last) / 2
        return [Difference(run.steps[-1][0], run.level(own) - beside) for run in between]
