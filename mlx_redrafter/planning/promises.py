"""What drafted steps of each shape promise by now: what they would yield, for what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..drafting.shape import BeamShape
from .forecast import Forecast, Yield, Yields
from .honesty import Honesty
from .learnt import Learnt
from .prices import StepPrices

# Another shape has to promise this much more than the present one.
SWITCH_MARGIN = 1.01
# And of what it promises so much is doubted, divided by the trees that show it: the largest of many
# estimates is mostly too large, most of all where few trees are behind it.
DOUBT = 0.2


def best_of(
    forecasts: Mapping[BeamShape | None, Forecast],
    present: BeamShape | None,
    *,
    below: float = math.inf,
) -> Forecast | None:
    """The fastest of some forecasts, so far as they are believed; the present one, unless another
    is clearly faster.

    Args:
        forecasts: By their shapes.
        present: What is drafted.
        below: Seconds: no step may take longer.
    """
    allowed = (one for one in forecasts.values() if one.step_seconds < below)
    best = max(allowed, key=_believed, default=None)
    held = forecasts.get(present) if present else None
    if best and held and SWITCH_MARGIN * held.tokens_per_second >= _believed(best):
        return held
    return best


def _believed(forecast: Forecast) -> float:
    """What is believed of a promised speed, before the shape was drafted."""
    doubt = DOUBT / forecast.trees if forecast.trees else 0.0
    return (1.0 - doubt) * forecast.tokens_per_second


class Promises:
    """Brings together what steps cost and what they yield.

    Args:
        prices: What steps cost.
        learnt: How likely nodes are accepted, and the trees drafted lately.
        shapes: Those to judge.
        honesty: What chosen drafts made, against what was promised.
    """

    def __init__(
        self, prices: StepPrices, learnt: Learnt, shapes: Sequence[BeamShape], honesty: Honesty
    ):
        self._prices, self._acceptance = prices, learnt.acceptance
        paths = prices.costs.path_row > 0.0
        self._yields, self._honesty = Yields(shapes, learnt.memory, paths=paths), honesty

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
        drafted = self._honesty.correct(self.drafted(context, choice, free))
        if choice is not None:
            drafted = [self._honesty.with_other_steps(one, plain) for one in drafted]
        return [Forecast(None, 1.0, plain), *drafted]

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
            result.append(Forecast(shape, 1.0 + expected.accepted, cost, expected.trees))
        return result
