"""How the time of steps differs from what was measured beforehand, by now.

Another program, heat or a battery slow every step down, whatever it does: one factor for the
machine follows each step that is timed. What calibration got wrong, or heat changes in the price of
several tokens against one, shows only where steps of different kinds stand side by side: a kind's
own factor is learnt from the jump between one kind and the next, of which little is believed, and
from what stood between two like steps (``between``); it ages towards what was measured. A kind that
was not used lately therefore borrows the machine's factor from those that were. Drafted steps share
a factor beside plain ones, which is larger the more of their forward goes beyond a plain one's:
mostly that is what has changed.
"""

from __future__ import annotations

import math

from .between import Between, Difference
from .costs import CostModel

# Share of a step's surprise that the machine's factor takes over.
MACHINE_RATE = 0.2
# Share of the jump between two kinds that is taken for theirs, and not for the machine's: it may
# have changed at that very moment. Of the first jumps it is more, so that at first their mean is
# taken: that the costs were measured wrongly is likelier then.
KIND_RATE = 0.25
FIRST_KIND_RATE = 0.8
# No more of a jump, as a logarithm, is taken for theirs: another program that begins or ends makes
# larger ones than calibration gets wrong.
LARGEST_JUMP = 0.2
# Share of what a kind took longer than was thought, between two like steps, that is taken for its
# own; and of what it did so twice in a row.
BETWEEN_RATE = 0.1
TWICE_RATE = 0.8
# A difference as small as this is none.
AGREES = 0.15
# Share of what drafted steps have in common that goes by what their forward costs beyond a plain
# one; the rest is the same for all. Told beside a forward over so many rows, up to so many times.
BEYOND_PLAIN = 0.5
USUAL_ROWS = 8
LARGEST_WEIGHT = 1.5
# What is left of a kind's own factor after a step; two thirds are left after 400.
KIND_MEMORY = 0.999
# One step says no more than this, as a logarithm: a factor of two.
LARGEST_SURPRISE = math.log(2)
# A step that took this many times what was expected waited for something: a compiler, a disk.
STALL = 8.0
STALLS_BELIEVED = 3
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
DRAFTED = 2  # all that draft, where they are one kind


class Clocks:
    """Factors on measured costs; kinds of step are told apart by their rows.

    One row is plain, none a plain step that overlaps with nothing.

    Args:
        costs: As measured.
        patience: Steps that have to disagree with them before they are taken to be wrong.
    """

    def __init__(self, costs: CostModel, patience: int = DISAGREEING_STEPS):
        self._costs, self._patience = costs, patience
        self._weights: dict[int, float] = {}
        self._machine = 0.0
        self._drafted = 0.0  # of all steps that draft, beside plain ones
        self._sizes: dict[int, float] = {}  # of each number of rows, beside all that draft
        self._alone = 0.0  # of plain steps that overlap with nothing, beside those that do
        # To overlap costs no time: a plain step is never taken for slower than one that does not.
        first = costs.contexts[0]
        self._least_alone = math.log(self.measured(PLAIN, first) / self.measured(ALONE, first))
        self._last: int | None = None
        self._stalls = 0
        self._plain_steps = 0
        self._jumps: dict[int, int] = {}  # to and from each kind; all that draft are one
        self._disagreeing = 0
        self._between = Between()
        self._excess: dict[int, float] = {}  # of each kind, when it stood last between two others
        self._agreed = 0

    def factor(self, rows: int) -> float:
        """Time over measured cost of a step that verifies ``rows`` tokens."""
        return math.exp(self._machine + self._own(rows))

    @property
    def machine(self) -> float:
        """The factor that all steps share."""
        return math.exp(self._machine)

    @property
    def knows_plain(self) -> bool:
        """Whether plain steps in a row were seen, against which all others are told."""
        return self._plain_steps >= PLAIN_ROW

    @property
    def agreed(self) -> int:
        """How many times in a row plain and drafted steps stood among each other as was thought."""
        return self._agreed

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
        surprise = time - self._machine - self._own(rows)
        if surprise > math.log(STALL) and self._stalls < STALLS_BELIEVED:
            self._stalls += 1
            return
        self._stalls = 0
        self._plain_steps += repeats * (rows == PLAIN)
        surprise = min(LARGEST_SURPRISE, max(-LARGEST_SURPRISE, surprise))
        self._age(repeats)
        if self._last is not None and self._last != rows:
            jump = min(LARGEST_JUMP, max(-LARGEST_JUMP, surprise))
            jump *= self._rate(self._last, rows)
            self._tell_apart(self._last, rows, jump)
            surprise -= jump
        self._machine += (1.0 - (1.0 - MACHINE_RATE) ** repeats) * surprise
        self._last = rows
        for other in self._between.take(_kind(rows), rows, time, self._own):
            self._believe(rows, other)
        apart = max((abs(self._own(size)) for size in self._sizes), default=abs(self._drafted))
        disagrees = apart > math.log(DISAGREEMENT)
        off = self._machine + self._own(max(rows, PLAIN))
        disagrees = disagrees or abs(off) > math.log(STEP_DISAGREEMENT)
        self._disagreeing = max(0, self._disagreeing + repeats * (1 if disagrees else -2))

    def doubt(self) -> None:
        """Forget how kinds differ: another program that is gone by now may have set them apart."""
        self._drafted = self._alone = 0.0
        self._sizes.clear()
        self._jumps.clear()
        self._between.forget()
        self._excess.clear()
        self._agreed = 0
        self._last = None

    def _believe(self, rows: int, other: Difference) -> None:
        """Take what another kind took between steps of so many rows for its own, if it did twice:
        what is seen once may have been the machine's for that moment.
        """
        kind = _kind(other.rows)
        before, self._excess[kind] = self._excess.get(kind, 0.0), other.excess
        if ALONE not in (kind, rows):
            self._agreed = self._agreed + 1 if abs(other.excess) <= AGREES else 0
        change = BETWEEN_RATE * other.excess
        if before * other.excess > 0:
            change = TWICE_RATE * math.copysign(min(abs(before), abs(other.excess)), other.excess)
        own, beside, between = self._own(rows), rows, other.rows
        if ALONE in (kind, rows) and self.knows_plain:
            # Drafted steps are told beside plain ones in a row: what differs here is the lone one.
            beside, between = min(beside, PLAIN), min(between, PLAIN)
        self._tell_apart(beside, between, change)
        self._machine -= self._own(rows) - own

    def _own(self, rows: int) -> float:
        if rows == ALONE:
            return self._alone
        if rows == PLAIN:
            return 0.0
        return self._weight(rows) * self._drafted + self._sizes.get(rows, 0.0)

    def _weight(self, rows: int) -> float:
        """How much of what drafted steps have in common a forward over so many rows takes."""
        if rows not in self._weights:
            usual = self._costs.beyond_plain(USUAL_ROWS)
            share = self._costs.beyond_plain(rows) / usual if usual > 0 else 1.0
            beyond = min(LARGEST_WEIGHT, max(0.0, share))
            self._weights[rows] = 1 - BEYOND_PLAIN + BEYOND_PLAIN * beyond
        return self._weights[rows]

    def _rate(self, before: int, now: int) -> float:
        """Share of a jump that is theirs, the larger the less is known of how they differ."""
        kind = ALONE if max(before, now) == PLAIN else DRAFTED
        if min(before, now) > PLAIN:  # two that draft: what each adds to the others is little
            return KIND_RATE
        jumps = self._jumps[kind] = self._jumps.get(kind, 0) + 1
        return max(KIND_RATE, FIRST_KIND_RATE / jumps)

    def _age(self, steps: int) -> None:
        left = KIND_MEMORY**steps
        self._drafted *= left
        self._alone *= left
        for rows in self._sizes:
            self._sizes[rows] *= left

    def _tell_apart(self, before: int, now: int, jump: float) -> None:
        """Take a jump between two kinds for a difference of theirs."""
        plain = (PLAIN, ALONE)
        if before in plain and now in plain:
            alone = self._alone + (jump if now == ALONE else -jump)
            self._alone = max(self._least_alone, alone)
            return
        if before in plain or now in plain:
            # A plain step that is faster than was thought makes drafted ones seem slower.
            change, size = jump if before in plain else -jump, max(before, now)
            # A small forward says little of a large one: what it does not share is its own.
            shared = change / max(1.0, self._weight(size))
            self._drafted += shared
            own = change - self._weight(size) * shared
            self._sizes[size] = self._sizes.get(size, 0.0) + own
            return
        for rows, share in ((before, -0.5), (now, 0.5)):
            self._sizes[rows] = self._sizes.get(rows, 0.0) + share * jump


def _kind(rows: int) -> int:
    return min(rows, DRAFTED)
