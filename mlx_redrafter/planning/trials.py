"""When drafts are tried, and what is known from trying.

Before a shape is chosen, a draft is a probe: it tells what shapes would yield, may cost more than
it makes, and fails where the text is one that the drafter cannot guess. Probes are therefore made
at places apart, in one answer after another, and no more of them than the account bears.
"""

from __future__ import annotations

from enum import Enum

from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep
from .allowance import LEAST, Allowance
from .probes import Probes

# Plain steps between the probes of an answer that failed; doubled each time.
LONGEST_GAP = 64
# An answer that was over before so many tokens says nothing of the next one's beginning.
SHORT_ANSWER = 16
# After so many failures in a row probes are small ones, of which more can be made.
FAILURES_FOR_SMALL = 3
# What failed on a machine so many times as slow says little of one that is free again.
FREED = 1.4
# Evidence for saying that drafts do not pay here.
PROBES_FOR_VERDICT = 6
ANSWERS_FOR_VERDICT = 3
# While a choice stands: probes of larger shapes to begin with, and drafts between them; then drafts
# between single ones, twice as many each time that the choice stays the same.
WIDE_PROBES = 3
WIDE_GAP = 4
WIDE_GAPS = (64, 512)
# Drafts accepted whole in a row after which a larger shape is looked at again; twice as many each
# time that no longer one was chosen for it.
WHOLE_RUNS = (3, 48)


class PlannerState(Enum):
    """What is known of whether drafts pay here."""

    TRYING = "trying shapes"
    DRAFTING = "drafting"
    RESTING = "not on this answer"
    OFF = "not on this machine so far"


class Trials:
    """Probes while nothing is chosen.

    Args:
        known: Whether it is known how drafts went on other texts.

    Attributes:
        allowance: The account that pays for them.
        failed_here: Whether probes of this answer failed, and none did better since.
    """

    def __init__(self, *, known: bool = False) -> None:
        self.allowance = Allowance(known=known)
        self.failed_here = False
        self._gap = 1
        self._plain = 0  # plain steps in a row
        self._failed = 0
        self._answers_failed = 0
        self._counted_here = False
        self._tokens_here = float(SHORT_ANSWER)
        self._in_a_row = 0
        self._paid = False
        self._slowness, self._slowness_failed = 1.0, 0.0  # now, and when drafts failed last

    @property
    def small(self) -> bool:
        """Whether the next probe is to be a small one."""
        return self._in_a_row >= FAILURES_FOR_SMALL

    @property
    def earned(self) -> bool:
        """Whether small probes pay, but have not shown what would: the next one may be larger."""
        return self._paid and self.allowance.full

    @property
    def overdrawn(self) -> bool:
        """Whether a choice has lost what may be lost, and is to be left."""
        return self.allowance.balance <= LEAST

    @property
    def evidence(self) -> bool:
        """Whether enough probes failed, in enough answers."""
        return self._failed >= PROBES_FOR_VERDICT and self._answers_failed >= ANSWERS_FOR_VERDICT

    def forgive(self, slowness: float) -> bool:
        """Forget what was lost on a loaded machine once it is free again; whether it is now.

        Args:
            slowness: The factor on all that the machine does by now, see :class:`Clocks`.
        """
        self._slowness = slowness
        if self._slowness_failed <= FREED * slowness:
            return False
        self._slowness_failed = 0.0
        self.allowance.renew()
        return True

    def begin_answer(self) -> None:
        """An answer begins, which may be unlike the last: the first step may be a probe."""
        if self._tokens_here >= SHORT_ANSWER:
            self.allowance.begin_answer()
            self._gap, self._plain = 1, LONGEST_GAP
        self.failed_here = self._counted_here = False
        self._tokens_here = 0.0

    def due(self, price: float) -> bool:
        """Whether a probe that costs so many plain steps is to be made now."""
        affordable = self.allowance.balance >= price - 1.0
        return affordable and (self._plain >= self._gap - 1 or price <= 1.0)

    def plain_before(self, price: float) -> int:
        """Plain steps, at least, before a probe of that price is due."""
        waiting = 0 if price <= 1.0 else self._gap - 1 - self._plain
        return max(waiting, self.allowance.plain_before(price - 1.0, off=self.evidence))

    def take_plain(self, step: ObservedStep, late: float, price: float) -> None:
        """A plain step was taken while nothing was chosen, or several.

        Args:
            step: How it went.
            late: Plain steps that it took longer, see :class:`Allowance`.
            price: What the next probe costs, in plain steps.
        """
        self._plain += step.repeats
        self._tokens_here += step.made
        self.allowance.take_plain(step.made, late, wanted=price - 1.0, off=self.evidence)

    def take_probe(self, price: float, tokens: float, paid: float) -> None:
        """A probe was made.

        Args:
            price: What it costs, in plain steps.
            tokens: What it made.
            paid: What it took this time.
        """
        self.allowance.take_drafted(paid, tokens)
        self._plain = 0
        self._tokens_here += tokens
        self.failed_here = tokens < price
        self._in_a_row = self._in_a_row + 1 if tokens < price else 0
        self._paid = tokens >= price
        if tokens >= price:
            self._gap = 1
            self._failed = max(0, self._failed - 2)
            return
        self._slowness_failed = self._slowness
        self._gap = min(2 * self._gap, LONGEST_GAP)
        self._failed += 1
        if not self._counted_here:
            self._answers_failed += 1
            self._counted_here = True

    def choose(self) -> None:
        """A shape was chosen: drafts pay."""
        self.failed_here = False
        self._slowness_failed = 0.0
        self._gap = 1
        self._failed = self._answers_failed = 0
        self._tokens_here = float(SHORT_ANSWER)

    def leave(self) -> None:
        """The choice was left: drafts do not pay any more, as far as this answer goes."""
        self.failed_here = True
        self._slowness_failed = self._slowness
        self._plain, self._gap = 0, 2
        self._in_a_row = FAILURES_FOR_SMALL
        self.allowance.leave()


class WideProbes:
    """Probes of larger shapes while a choice stands.

    Args:
        known: Whether larger shapes are known already, so that only now and then one is made.
    """

    def __init__(self, *, known: bool = False) -> None:
        self._left = 0 if known else WIDE_PROBES
        self._steps = WIDE_GAPS[0] if known else WIDE_GAP
        self._gap = WIDE_GAPS[0]
        self._skipped = False
        self._whole = 0
        self._run = WHOLE_RUNS[0]

    @property
    def settled(self) -> bool:
        """Whether larger shapes have been looked at as far as they were worth it."""
        return self._left <= 0 or self._skipped

    def take_draft(self, *, whole: bool) -> None:
        """A step drafted the choice; ``whole`` is whether all its length was accepted.

        A draft that was accepted whole does not show how far a longer one would go: as long as that
        is not known, the next step is to show it. Several in a row say that the text is easier
        than the one that the choice rests on.
        """
        self._whole = self._whole + 1 if whole else 0
        looks = self._left > 0 or self._whole >= self._run
        self._steps = 0 if whole and looks else self._steps - 1

    def take_probe(self, *, news: bool, longer: bool) -> None:
        """One was made.

        Args:
            news: Whether few as large were made before.
            longer: Whether a longer shape was chosen for it.
        """
        if self._whole >= self._run:
            self._run = WHOLE_RUNS[0] if longer else min(2 * self._run, WHOLE_RUNS[1])
        self._whole = 0
        self._left -= 1
        if news:
            self._left, self._gap = max(self._left, 1), WIDE_GAPS[0]
        if self._left > 0:
            self._steps = WIDE_GAP
            return
        self._steps = self._gap
        self._gap = min(2 * self._gap, WIDE_GAPS[1])

    def find(
        self, probes: Probes, choice: BeamShape, tokens: float, balance: float
    ) -> BeamShape | None:
        """The next one, if it is due and can be afforded, see :meth:`Probes.larger`."""
        if self._steps > 0:
            return None
        found = probes.larger(choice, tokens, balance)
        if found is None:  # at this price: look again some steps later
            self._skipped = True
            self._steps = 2 * WIDE_GAP
        return found
