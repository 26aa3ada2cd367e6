"""Choosing what to draft by what is promised, until the account has lost what it bears."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..drafting.shape import BeamShape
from .beginnings import Beginnings
from .forecast import Forecast
from .honesty import Honesty
from .learnt import Learnt
from .plain_breaks import PlainBreaks
from .prices import StepPrices
from .probes import MARGIN
from .promises import Promises, best_of
from .trials import Trials

# A choice is left when it promises less, times plain.
LEFT_AT = 1.0
# Steps until it is chosen again.
STEPS = 8


class Choice:
    """The shape that is drafted by now.

    Args:
        prices: What steps cost.
        learnt: How likely nodes are accepted, and the trees drafted lately.
        honesty: What chosen drafts made, against what was promised.
        beginnings: What is set aside after answers unlike those before them.
        trials: Probes, and the account that drafts are paid from.
        shapes: Those to choose from.

    Attributes:
        shape: It; None is plain decoding.
        forecast: What it promises, as it was before it was put right.
        breaks: Plain steps between its drafts.
        promises: What every shape promises.
    """

    def __init__(
        self,
        prices: StepPrices,
        learnt: Learnt,
        honesty: Honesty,
        beginnings: Beginnings,
        trials: Trials,
        shapes: Sequence[BeamShape],
    ):
        self._prices, self._learnt, self._honesty = prices, learnt, honesty
        self._beginnings, self._trials = beginnings, trials
        self.shape: BeamShape | None = None
        self.forecast = Forecast(None, 1.0, prices.costs.plain[0])
        self.breaks = PlainBreaks()
        self._steps = STEPS
        self.take_shapes(shapes)

    def take_shapes(self, shapes: Sequence[BeamShape]) -> None:
        """Choose from these from now on."""
        self.promises = Promises(self._prices, self._learnt, shapes, self._honesty)

    @property
    def expected(self) -> float:
        """Tokens that a step is expected to make that drafts it; 0 without a choice."""
        return self.forecast.tokens_per_step if self.shape is not None else 0.0

    def price(self, context: int) -> float:
        """Plain steps that such a step is expected to take."""
        return self.forecast.step_seconds / self._prices.plain_seconds(context)

    def take_steps(self, steps: int, context: int) -> None:
        """So many are over: choose again where it is time, or where it has lost too much."""
        self._steps -= steps
        if self.shape is not None and (self._steps <= 0 or self._trials.overdrawn):
            self.make(context)

    def make(self, context: int) -> None:
        """Choose; called after a probe, and while there is a choice."""
        self._steps = STEPS
        self._trials.reprice(self._prices.clocks, context)
        raw = self.promises.drafted(context, self.shape, self._trials.probes.free)
        forecasts = {one.shape: one for one in self._honesty.correct(raw)}
        self._prices.take_forecasts(forecasts.values())
        plain = self._prices.plain_seconds(context)
        tried = self.shape is not None or self._trials.enough
        # Before that only what costs less than a plain step, whatever it makes.
        best = best_of(forecasts, self.shape, below=math.inf if tried else plain / MARGIN)
        if best is None:
            return
        pays = best.tokens_per_second * plain > (LEFT_AT if self.shape else MARGIN)
        lost = self.shape is not None and self._trials.overdrawn
        if self.shape is not None and not pays and not lost and self._beginnings.go_back():
            self.make(context)
        elif pays and not lost:
            self._draft(next(one for one in raw if one.shape == best.shape), context)
        else:
            self.leave(context)

    def leave(self, context: int) -> None:
        """Draft nothing."""
        if self.shape is not None:
            self._trials.leave()
            self._honesty.forget()
            self._beginnings.fail()
            self._learnt.memory.forget_recorded()
            self._trials.reprice(self._prices.clocks, context)
        self.shape = None

    def _draft(self, forecast: Forecast, context: int) -> None:
        """Draft the shape of a forecast, as it was before it was put right."""
        if self.shape is None:
            self._trials.choose()
        self.shape, self.forecast = forecast.shape, forecast
        gain = forecast.tokens_per_second * self._prices.plain_seconds(context)
        seen = self._prices.plain_speed(context) is not None
        clocks, free = self._prices.clocks, self._trials.probes.free is not None
        self.breaks.space(gain, seen=seen, told=clocks.knows_plain, free=free, agreed=clocks.agreed)
