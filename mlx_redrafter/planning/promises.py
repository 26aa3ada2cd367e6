"""What drafted steps of each shape promise by now: what they would yield, for what they cost."""

from __future__ import annotations

from collections.abc import Iterable

from ..drafting.shape import BeamShape
from .acceptance import AcceptanceModel
from .forecast import Forecast, Yield, Yields
from .honesty import Honesty
from .prices import StepPrices

# Another shape has to promise this much more than the present one.
SWITCH_MARGIN = 1.01


def best_of(forecasts: Iterable[Forecast], present: Forecast | None) -> Forecast | None:
    """The fastest of some forecasts; the present one, unless another is clearly faster."""
    best = max(forecasts, key=lambda one: one.tokens_per_second, default=None)
    if best and present and SWITCH_MARGIN * present.tokens_per_second >= best.tokens_per_second:
        return present
    return best


class Promises:
    """Brings together what steps cost and what they yield.

    Args:
        prices: What steps cost.
        acceptance: How likely nodes are accepted.
        yields: What shapes would have yielded lately.
        honesty: What chosen drafts made, against what was promised.
    """

    def __init__(
        self, prices: StepPrices, acceptance: AcceptanceModel, yields: Yields, honesty: Honesty
    ):
        self._prices, self._acceptance = prices, acceptance
        self._yields, self._honesty = yields, honesty

    def prepare(self) -> None:
        """Do what can be done of the work before any forecast is asked for."""
        self._yields.count()

    def beside_plain(
        self, context: int, choice: BeamShape | None, free: BeamShape | None
    ) -> list[Forecast]:
        """Plain decoding, then what drafts promise, with the plain steps and the copies between
        them.
        """
        plain = self._prices.plain_seconds(context)
        drafted = [self.honest(one) for one in self.drafted(context, choice, free)]
        if choice is not None:
            drafted = [self._honesty.with_other_steps(one, plain) for one in drafted]
        return [Forecast(None, 1.0, plain), *drafted]

    def honest(self, forecast: Forecast) -> Forecast:
        """What :meth:`drafted` gives, put right by what was made of such forecasts so far."""
        made = max(1.0, forecast.tokens_per_step * self._honesty.tokens)
        return Forecast(forecast.shape, made, forecast.step_seconds * self._honesty.seconds)

    def drafted(
        self, context: int, choice: BeamShape | None, free: BeamShape | None
    ) -> list[Forecast]:
        """Forecasts of the shapes of which something is known.

        Args:
            context: Tokens before the step.
            choice: What is drafted.
            free: A shape that costs less than a plain step, whatever it yields.
        """
        costs, clocks = self._prices.costs, self._prices.clocks
        known = self._yields.expected(self._acceptance.chances, choice)
        if free is not None:
            known.setdefault(free, Yield(0.0, 0.0, float(free.nodes)))
        result = []
        for shape, expected in known.items():
            cost = costs.step_seconds(
                shape, context, kept=1.0 + expected.accepted, rejected=1.0 - expected.whole,
                path_rows=expected.path_rows,
            ) * clocks.factor(1 + shape.nodes)  # fmt: skip
            result.append(Forecast(shape, 1.0 + expected.accepted, cost))
        return result
