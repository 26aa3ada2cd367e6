"""How the time of steps differs from what was measured beforehand, by now.

Another program, heat or a battery slow every step down, whatever it does: one factor for the
machine. What calibration got wrong, or heat changes in the price of several tokens against one,
sets kinds of step apart: drafted steps share a factor beside plain ones, which is larger the more
of their forward goes beyond a plain one's, each number of rows has a small one of its own, and so
has a plain step that overlaps with nothing. Logarithms of all of them are estimated together
(``kalman``), so that a difference which shows with every change of kinds is theirs, and one that
comes and goes is the machine's. What sets kinds apart ages towards what was measured; a kind that
was not used lately borrows the machine's factor from those that were.
"""

from __future__ import annotations

import math

from .acceptance import FloatArray
from .costs import CostModel
from .kalman import Component, Hypothesis, KalmanFilter

# Logarithms: 0.1 is a tenth of a step's time.
MACHINE_FACTOR = Component(deviation=0.5, drift=0.03, jump=0.7)
# Two thirds of what sets kinds apart are left after 400 steps.
DRAFTED_FACTOR = Component(deviation=0.3, drift=0.01, memory=0.999)
ALONE_FACTOR = Component(deviation=0.15, drift=0.005, memory=0.999)
SIZE_FACTOR = Component(deviation=0.05, drift=0.005, memory=0.999)
# A step takes its time; or another program began or ended just then; or it waited for something of
# its own: a disk, a compiler.
HYPOTHESES = (Hypothesis(0.9), Hypothesis(0.05, jumped=True), Hypothesis(0.05, delay=1.0))
# Share of what drafted steps have in common that goes by what their forward costs beyond a plain
# one; the rest is the same for all. Told beside a forward over so many rows, up to so many times.
BEYOND_PLAIN = 0.5
USUAL_ROWS = 8
LARGEST_WEIGHT = 1.5
# Steps disagree with the measured costs where kinds differ by the first factor, or one of them by
# the second.
DISAGREEMENT = 1.3
STEP_DISAGREEMENT = 1.5
# Plain steps in a row that say what one takes.
PLAIN_ROW = 2
# After so many steps that disagree the costs are taken to be wrong.
DISAGREEING_STEPS = 100

PLAIN = 1  # rows of a plain step
# A plain step that overlaps with nothing, or half of two that overlap with each other alone: in a
# small model it takes longer than in a row of them.
ALONE = 0

# Places of the factors
_MACHINE, _DRAFTED, _ALONE = range(3)


class Clocks:
    """Factors on measured costs; kinds of step are told apart by their rows.

    One row is plain, none a plain step that overlaps with nothing.

    Args:
        costs: As measured.
        patience: Steps that have to disagree with them before they are taken to be wrong.
    """

    def __init__(self, costs: CostModel, patience: int = DISAGREEING_STEPS):
        self._costs, self._patience = costs, patience
        factors = (MACHINE_FACTOR, DRAFTED_FACTOR, ALONE_FACTOR)
        self._factors = KalmanFilter(factors, HYPOTHESES)
        self._sizes: dict[int, int] = {}  # place of the factor of each number of rows
        self._beyond: dict[int, float] = {}  # see :meth:`_weight`
        self._weights: dict[int, FloatArray] = {}  # of the factors in each kind of step
        self._plain_steps = 0
        self._disagreeing = 0

    def factor(self, rows: int) -> float:
        """Time over measured cost of a step that verifies ``rows`` tokens."""
        return math.exp(self._factors.mean(_MACHINE) + self._own(rows))

    @property
    def machine(self) -> float:
        """The factor that all steps share."""
        return math.exp(self._factors.mean(_MACHINE))

    @property
    def knows_plain(self) -> bool:
        """Whether plain steps in a row were seen, against which all others are told."""
        return self._plain_steps >= PLAIN_ROW

    def deviation(self, rows: int) -> float:
        """How well it is known what a step of so many rows takes beside a plain one: the standard
        deviation of the logarithm of their ratio."""
        return self._factors.deviation(self._weights_of(rows) - self._weights_of(PLAIN))

    @property
    def wrong(self) -> bool:
        """Whether steps have disagreed with the measured costs for so long that these are wrong:
        counted are those that disagreed, less twice those that did not."""
        return self._disagreeing >= self._patience

    def anew(self, costs: CostModel) -> Clocks:
        """Clocks on costs that were measured again; twice as patient where that was in vain before,
        as where another program comes and goes.
        """
        return Clocks(costs, 2 * self._patience if self.wrong else self._patience)

    def measured(self, rows: int, context: int) -> float:
        """Seconds of a step without a draft, by what was measured, without any factor.

        Args:
            rows: Tokens verified, see :meth:`observe`.
            context: Tokens before the step.
        """
        if rows > PLAIN:
            return self._costs.check_seconds(rows, context)
        plain = self._costs.step_seconds(None, context)
        if rows == PLAIN:
            return plain
        return max(plain, self._costs.verify_seconds(1, context) + self._costs.around)

    def seconds(self, rows: int, context: int) -> float:
        """The same by now."""
        return self.measured(rows, context) * self.factor(rows)

    def apart_seconds(self, context: int) -> float:
        """What is lost where two plain steps in a row do not overlap.

        Both are then steps that overlap on one side alone, of which each counts for half of
        ``ALONE``'s price; so do the two that stand beside what is put between them.
        """
        return 2.0 * max(0.0, self.seconds(ALONE, context) - self.seconds(PLAIN, context))

    def observe(self, rows: int, seconds: float, expected: float, *, repeats: int = 1) -> None:
        """Learn from a step, or from several that were alike.

        Args:
            rows: Tokens verified, 1 in a plain step, ``ALONE`` in one that overlaps with nothing.
            seconds: What it took.
            expected: What it costs as measured, without any factor.
            repeats: How many steps took so long, in the mean.
        """
        time = math.log(max(seconds, 1e-9) / expected)
        self._factors.update(self._weights_of(rows), time, repeats)
        self._plain_steps += repeats * (rows == PLAIN)
        apart = max((abs(self._own(size)) for size in self._sizes), default=0.0)
        disagrees = apart > math.log(DISAGREEMENT)
        off = self._factors.mean(_MACHINE) + self._own(max(rows, PLAIN))
        disagrees = disagrees or abs(off) > math.log(STEP_DISAGREEMENT)
        self._disagreeing = max(0, self._disagreeing + repeats * (1 if disagrees else -2))

    def doubt(self) -> None:
        """Forget how kinds differ: another program that is gone by now may have set them apart."""
        for place in (_DRAFTED, _ALONE, *self._sizes.values()):
            self._factors.reset(place)

    def _own(self, rows: int) -> float:
        """What sets a kind apart from plain steps."""
        if rows == PLAIN:
            return 0.0
        if rows == ALONE:
            return self._factors.mean(_ALONE)
        own = self._factors.mean(self._sizes[rows]) if rows in self._sizes else 0.0
        return self._weight(rows) * self._factors.mean(_DRAFTED) + own

    def _weights_of(self, rows: int) -> FloatArray:
        """The factors that a step's time is made of."""
        if rows > PLAIN and rows not in self._sizes:
            self._sizes[rows] = self._factors.add(SIZE_FACTOR)
            self._weights.clear()
        if rows not in self._weights:
            shares = {_MACHINE: 1.0}
            if rows == ALONE:
                shares[_ALONE] = 1.0
            elif rows > PLAIN:
                shares |= {_DRAFTED: self._weight(rows), self._sizes[rows]: 1.0}
            self._weights[rows] = self._factors.weights(shares)
        return self._weights[rows]

    def _weight(self, rows: int) -> float:
        """How much of what drafted steps have in common a forward over so many rows takes."""
        if rows not in self._beyond:
            usual = self._costs.beyond_plain(USUAL_ROWS)
            share = self._costs.beyond_plain(rows) / usual if usual > 0 else 1.0
            beyond = min(LARGEST_WEIGHT, max(0.0, share))
            self._beyond[rows] = 1 - BEYOND_PLAIN + BEYOND_PLAIN * beyond
        return self._beyond[rows]
