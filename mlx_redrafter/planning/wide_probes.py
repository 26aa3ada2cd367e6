"""Probes of larger shapes while a choice stands: whether more would pay.

One that is made in the graph of the step before it is verified no further than is worth it, like
every draft, and compared with the text that follows: so it costs little more than its draft.
"""

from __future__ import annotations

from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep
from .depth_chance import depth_chance
from .forecast import Forecast
from .trials import Trials

# While a choice stands: probes of larger shapes to begin with, and drafts between them; then drafts
# between single ones, twice as many each time that the choice stays the same.
WIDE_PROBES = 3
WIDE_GAP = 4
WIDE_GAPS = (64, 512)
# Drafts accepted whole in a row after which a larger shape is looked at again; twice as many each
# time that no longer one was chosen for it; or as soon as that would be so seldom if the text were
# like those before it.
WHOLE_RUNS = (3, 12)
SELDOM = 0.001
# While one is compared with its text no other is made, for so many tokens at most: the text may
# have ended with it, and other texts may go on meanwhile.
TOKENS_AWAITED = 64


class WideProbes:
    """Probes of larger shapes while a choice stands.

    Args:
        known: Whether larger shapes are known already, so that only now and then one is made.

    Attributes:
        due: What the next draft is to be; None where it is no probe.
    """

    def __init__(self, *, known: bool = False) -> None:
        self._known = known
        self._left = 0 if known else WIDE_PROBES
        self._steps = WIDE_GAPS[0] if known else WIDE_GAP
        self._gap = WIDE_GAPS[0]
        self._skipped = False
        self._whole = self._whole_before = 0  # drafts accepted whole in a row, and before the last
        self._run = WHOLE_RUNS[0]
        self._look_further = False
        self.due: BeamShape | None = None
        self._tokens_awaited = 0

    @property
    def awaited(self) -> bool:
        """Whether one is being compared with the text."""
        return self._tokens_awaited > 0

    def take_step(self, step: ObservedStep) -> None:
        """A step is over. How a probe went is never known of a text that ends with it."""
        self._tokens_awaited = max(0, self._tokens_awaited - round(step.made))
        if step.next_watched and not step.watching:
            self._tokens_awaited = TOKENS_AWAITED

    @property
    def settled(self) -> bool:
        """Whether larger shapes have been looked at as far as they were worth it."""
        return self._left <= 0 or self._skipped

    def begin_answer(self, *, early: bool) -> None:
        """The last draft was cut off where the answer before ended, and says nothing; nor would one
        that is made early, in the graph of the answer's first step, of which nobody hears.
        """
        if early:
            self.due = None
        self._whole = max(self._whole, self._whole_before)

    def take_draft(self, accepted: float, length: int, forecast: float) -> None:
        """A step drafted the choice.

        A draft that was accepted whole does not show how far a longer one would go: as long as that
        is not known, the next step is to show it. Several in a row say that the text is easier
        than the one that the choice rests on.

        Args:
            accepted: Tokens of the draft that were accepted.
            length: Those that it had.
            forecast: Those that were expected to be accepted.
        """
        whole = accepted >= length
        self._whole_before = self._whole
        self._whole = self._whole + 1 if whole else 0
        self._look_further = whole and (self._left > 0 or self._is_long_run(length, forecast))
        self._steps -= 1

    def _is_long_run(self, length: int, forecast: float) -> bool:
        if self._whole < WHOLE_RUNS[0]:
            return False
        if self._whole >= self._run:
            return True
        return depth_chance(length, forecast) ** (length * self._whole) < SELDOM

    def take_probe(self, *, news: bool, longer: bool) -> None:
        """One was made.

        Args:
            news: Whether few as large were made before.
            longer: Whether a longer shape was chosen for it.
        """
        if self._whole >= self._run:
            self._run = WHOLE_RUNS[0] if longer else min(2 * self._run, WHOLE_RUNS[1])
        self._whole = self._whole_before = 0
        self._look_further = False
        self._tokens_awaited = 0
        self._left -= 1
        if news and not self._known:
            self._left, self._gap = max(self._left, 1), WIDE_GAPS[0]
        if self._left > 0:
            self._steps = WIDE_GAP
            return
        self._steps = self._gap
        self._gap = min(2 * self._gap, WIDE_GAPS[1])

    def find(self, trials: Trials, chosen: Forecast | None) -> None:
        """Find the next one, if it is time for it and it can be afforded, see :class:`Probes`: a
        longer one after drafts accepted whole, now and then one that shows much; none beside no
        choice.
        """
        self.due = self._next(trials, chosen) if chosen and not self.awaited else None

    def forget(self) -> None:
        """None is to be made."""
        self.due = None

    def _next(self, trials: Trials, chosen: Forecast) -> BeamShape | None:
        if chosen.shape is None:
            return None
        balance = trials.allowance.balance
        longer = trials.probes.longer(chosen.shape, balance) if self._look_further else None
        if longer is not None or self._steps > 0:
            return longer
        found = trials.probes.larger(chosen.shape, chosen.tokens_per_step, balance)
        if found is None:  # at this price: look again some steps later
            self._skipped = True
            self._steps = 2 * WIDE_GAP
        return found
