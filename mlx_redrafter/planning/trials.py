"""When drafts are tried, and what is known from trying.

Before a shape is chosen, a draft is a probe: it tells what shapes would yield, may cost more than
it makes, and fails where the text is one that the drafter cannot guess. Probes are therefore made
at places apart, in one answer after another, and no more of them than the account bears.
"""

from __future__ import annotations

from enum import Enum

from ..drafting.shape import BeamShape
from ..engine.shape_planner import MOST_PATIENCE, ObservedStep
from .allowance import LEAST, Allowance
from .clocks import Clocks
from .costs import CostModel
from .probes import Probes

# Plain steps between the probes of an answer that failed; doubled each time.
LONGEST_GAP = 64
# An answer that was over before so many tokens says nothing of the next one's beginning.
SHORT_ANSWER = 16
# After so many failures in a row probes are small ones, of which more can be made.
FAILURES_FOR_SMALL = 3
# Probes that a first choice rests on.
PROBES_TO_CHOOSE = 2
# What a probe is expected to make before any was made, and how much each says of the next.
EXPECTED = 2.0
NEWS = 0.3
# No watched draft counts for so many plain steps more than it was to cost: it may have waited for
# another program.
MOST_OVERHEAD = 2.0
# What failed on a machine so many times as slow says little of one that is free again.
FREED = 1.4
# Evidence for saying that drafts do not pay here.
PROBES_FOR_VERDICT = 6
ANSWERS_FOR_VERDICT = 3


class PlannerState(Enum):
    """What is known of whether drafts pay here."""

    TRYING = "trying shapes"
    DRAFTING = "drafting"
    RESTING = "not on this answer"
    OFF = "not on this machine so far"


class Trials:
    """Probes while nothing is chosen.

    Args:
        costs: What steps cost.
        chains: Whether only chains are verified.
        watches: Whether drafts can be watched before any is verified, see ``WatchedDraft``.
        known: Whether it is known how drafts went on other texts.

    Attributes:
        probes: Their shapes.
        allowance: The account that pays for them.
        failed_here: Whether probes of this answer failed, and none did better since.
    """

    def __init__(
        self,
        costs: CostModel,
        *,
        chains: bool = False,
        watches: bool = False,
        known: bool = False,
    ) -> None:
        self._chains, self._watches = chains, watches
        self.allowance = Allowance(known=known)
        self.probes = Probes(costs, chains=chains, watches=watches)
        self._made = PROBES_TO_CHOOSE if known else 0
        self._expected = EXPECTED  # tokens of a step that verifies the next probe
        # Plain steps that a watched draft takes besides its own time; None before that was seen.
        self._overhead: float | None = None
        self._watching = 0  # tokens after which it is known how a watched draft went
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

    def take_costs(self, costs: CostModel) -> None:
        """Costs were measured again."""
        self.probes = Probes(costs, chains=self._chains, watches=self._watches)

    def reprice(self, clocks: Clocks, context: int) -> None:
        """Price probes by what steps cost by now, after so many tokens.

        After failures they are small ones. Where those pay, but have not shown what would, the next
        one may be larger.
        """
        self.probes.reprice(
            clocks,
            context,
            small=self._in_a_row >= FAILURES_FOR_SMALL,
            earned=self._paid and self.allowance.full,
            expected=self._expected,
            overhead=self._overhead,
        )
        self.allowance.spare(watches=self.probes.watches)

    @property
    def state(self) -> PlannerState:
        """What is known while nothing is chosen."""
        if self.evidence or self.probes.first is None:
            return PlannerState.OFF
        return PlannerState.RESTING if self.failed_here else PlannerState.TRYING

    @property
    def enough(self) -> bool:
        """Whether a shape may be chosen by what probes have shown."""
        return self._made >= PROBES_TO_CHOOSE and not self.failed_here

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

    @property
    def next(self) -> BeamShape | None:
        """The probe to be made now; None where it is not time, or nothing could pay."""
        price = self.probes.trial_price
        due = self.allowance.bears(price - 1.0) and (self._plain >= self._wait or price <= 1.0)
        return self.probes.first if due else None

    @property
    def _wait(self) -> int:
        """Plain steps between the last probe and the next."""
        return max(self._gap - 1, self._watching)

    @property
    def patience(self) -> int:
        """Plain steps, at least, before a probe is due."""
        if self.probes.first is None:
            return MOST_PATIENCE
        price = self.probes.trial_price
        waiting = 0 if price <= 1.0 else self._wait - self._plain
        return max(waiting, self.allowance.plain_before(price - 1.0, off=self.evidence))

    def take_plain(self, step: ObservedStep, late: float, *, trying: bool) -> None:
        """A plain step was taken, or several.

        Args:
            step: How it went.
            late: Plain steps that it took longer, see :class:`Allowance`.
            trying: Whether nothing is chosen.
        """
        if not trying:
            self.allowance.take_plain(step.made, late)
            return
        self._plain += step.repeats
        self._tokens_here += step.made
        wanted = self.probes.trial_price - 1.0
        self.allowance.take_plain(step.made, late, wanted=wanted, off=self.evidence)

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
        self._judge(price, tokens)

    def launch_watched(self, shape: BeamShape, took: float | None) -> None:
        """A draft was made that is only watched.

        Args:
            shape: What was drafted.
            took: Plain steps that it took; None where that is not known.
        """
        price = self.probes.trial_price - 1.0
        if took is not None:
            before = self.probes.watch_overhead
            alone = price - before
            price = min(took, MOST_OVERHEAD + price)
            self._overhead = before + NEWS * (max(0.0, price - alone) - before)
        self.allowance.take_watched(price)
        self._plain, self._watching = 0, 1 + shape.length

    def take_watched(self, tokens: float) -> None:
        """It is known what a step would have made that verified a watched draft."""
        self._watching = 0
        if tokens >= self.probes.first_price:
            self.allowance.lend(self.probes.trial_price - 1.0, self.probes.verified_price - 1.0)
        self._judge(self.probes.first_price, tokens)

    def _judge(self, price: float, tokens: float) -> None:
        """Learn from whether a probe made what it costs."""
        self._made += 1
        self._expected += NEWS * (tokens - self._expected)
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
        self._expected = self.probes.first_price
        self.allowance.leave()

    def doubt(self, clocks: Clocks, context: int) -> None:
        """What is known of other texts says that drafts do not pay here."""
        self._expected = 1.0
        self.allowance.doubt()
        self.reprice(clocks, context)
