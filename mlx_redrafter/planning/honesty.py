"""What chosen drafts made, against what was forecast for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engine.shape_planner import ObservedStep
from .forecast import Forecast
from .prices import StepPrices

# Decay of what was made and forecast, a step; and the steps that count as forecast beforehand.
FORGET = 0.99
PRIOR_STEPS = 10.0
# A forecast is put right by no more than this.
LARGEST = 2.0


@dataclass
class OtherSteps:
    """Steps of one kind, among those since there is a choice, that are no chosen drafts.

    Attributes:
        share: Of all steps, how many are.
        tokens: What one makes, in the mean.
        price: What it takes, in plain steps.
    """

    share: float = 0.0
    tokens: float = 1.0
    price: float = 1.0

    def take(self, tokens: float, price: float) -> None:
        """There was one."""
        self.share += (1.0 - FORGET) * (1.0 - self.share)
        # Of the first ones a mean; later ones count for so much of the share as they are.
        weight = max(1.0 - FORGET, (1.0 - FORGET) / self.share)
        self.tokens += weight * (tokens - self.tokens)
        self.price += weight * (price - self.price)

    def age(self) -> None:
        """There was a step of another kind."""
        self.share *= FORGET


class Honesty:
    """Factors that put forecasts of drafted steps right, and the steps beside them.

    A step may verify less than its whole draft, drafts pause where they fail, and where the text
    repeats itself copies of it are verified: all that is left out of what trees tell.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drafting ended: what was forecast wrong then says nothing of later forecasts."""
        self._plain, self._copied = OtherSteps(), OtherSteps()
        self._tokens = [PRIOR_STEPS, PRIOR_STEPS]  # made, forecast, both as shares of a forecast
        self._seconds = [PRIOR_STEPS, PRIOR_STEPS]

    def save(self) -> tuple[OtherSteps, OtherSteps, list[float], list[float]]:
        """What is known by now, for :meth:`restore`."""
        kept = list(self._tokens), list(self._seconds)
        return replace(self._plain), replace(self._copied), *kept

    def restore(self, saved: tuple[OtherSteps, OtherSteps, list[float], list[float]]) -> None:
        """Take back what was known."""
        self._plain, self._copied = replace(saved[0]), replace(saved[1])
        self._tokens, self._seconds = list(saved[2]), list(saved[3])

    @property
    def tokens(self) -> float:
        """Tokens made over tokens forecast."""
        return _ratio(self._tokens)

    @property
    def seconds(self) -> float:
        """Seconds taken over seconds forecast."""
        return _ratio(self._seconds)

    def with_other_steps(self, drafted: Forecast, plain: float) -> Forecast:
        """What a mean step makes, and takes, where those that draft are as forecast.

        Args:
            drafted: Of a step that drafts.
            plain: Seconds of a plain one.
        """
        others = (self._plain, self._copied)
        left = 1.0 - sum(one.share for one in others)
        tokens = left * drafted.tokens_per_step + sum(one.share * one.tokens for one in others)
        seconds = left * drafted.step_seconds + plain * sum(one.share * one.price for one in others)
        return Forecast(drafted.shape, tokens, seconds)

    def observe(self, step: ObservedStep, forecast: Forecast, prices: StepPrices) -> None:
        """Learn from a step that was taken while a shape is chosen.

        Args:
            step: How it went; larger probes say nothing here.
            forecast: Of the chosen shape.
            prices: What steps cost.
        """
        if step.is_plain:
            for _ in range(step.repeats):
                self._plain.take(1.0, 1.0)
                self._copied.age()
        elif any(record.copied for record in step.records):
            self._copied.take(step.tokens, prices.price(step))
            self._plain.age()
        elif step.shape == forecast.shape:
            tokens = step.tokens / forecast.tokens_per_step
            self._take_drafted(tokens, prices.seconds(step) / forecast.step_seconds)

    def _take_drafted(self, tokens: float, seconds: float) -> None:
        """A chosen draft made so many times the tokens forecast in so many times the seconds."""
        self._plain.age()
        self._copied.age()
        for kept, share in ((self._tokens, tokens), (self._seconds, seconds)):
            kept[0] = FORGET * kept[0] + min(share, 4.0)
            kept[1] = FORGET * kept[1] + 1.0


def _ratio(kept: list[float]) -> float:
    return min(LARGEST, max(1 / LARGEST, kept[0] / kept[1]))
