"""What chosen drafts made, against what was forecast for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep
from .forecast import Forecast
from .prices import StepPrices

# Decay of what was made and forecast, a step; and the steps that count as forecast beforehand.
FORGET = 0.99
PRIOR_STEPS = 10.0
# A forecast is put right by no more than this, and no step counts for more times its forecast.
LARGEST = 2.0
LARGEST_STEP = 4.0


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


@dataclass
class ChosenSteps:
    """Steps of one shape, while it was chosen; what is longer ago counts less.

    Attributes:
        steps: How many there were.
        tokens: What they made.
        forecast: What one was last expected to make.
        price_ratio: The price of what they verified over that of all that was forecast, summed.
    """

    steps: float = 0.0
    tokens: float = 0.0
    forecast: float = 1.0
    price_ratio: float = 0.0

    def take(self, tokens: float, forecast: float, price_ratio: float) -> None:
        """There was one."""
        self.steps += 1.0
        self.tokens += tokens
        self.forecast = forecast
        self.price_ratio += price_ratio

    def age(self) -> None:
        """There was a step that drafted."""
        self.steps *= FORGET
        self.tokens *= FORGET
        self.price_ratio *= FORGET


@dataclass(frozen=True)
class _Known:
    plain: OtherSteps
    copied: OtherSteps
    chosen: dict[BeamShape, ChosenSteps]


class Honesty:
    """Puts forecasts of drafted steps right, and the steps beside them.

    A step may verify less than its whole draft, drafts pause where they fail, an answer ends in the
    middle of one, and where the text repeats itself copies of it are verified: all that is left out
    of what trees tell. What was made is held against what would be forecast by now, so that nothing
    counts twice which forecasts have learnt meanwhile.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drafting ended: what was forecast wrong then says nothing of later forecasts."""
        self._plain, self._copied = OtherSteps(), OtherSteps()
        self._chosen: dict[BeamShape, ChosenSteps] = {}

    def begin_again(self, drafts: object) -> None:  # noqa: ARG002
        """What was forecast of another text says nothing of this one."""
        self.forget()

    def save(self) -> _Known:
        """What is known by now, for :meth:`restore`."""
        return _copy(_Known(self._plain, self._copied, self._chosen))

    def restore(self, saved: _Known) -> None:
        """Take back what was known."""
        known = _copy(saved)
        self._plain, self._copied, self._chosen = known.plain, known.copied, known.chosen

    def correct(self, forecasts: Iterable[Forecast]) -> list[Forecast]:
        """Put forecasts of drafts right.

        Args:
            forecasts: What trees tell by now.
        """
        given = list(forecasts)
        tokens = self._tokens({one.shape: one.tokens_per_step for one in given})
        seconds = self._seconds()
        return [
            replace(
                one,
                tokens_per_step=max(1.0, min(_most(one), one.tokens_per_step * tokens)),
                step_seconds=one.step_seconds * seconds,
            )
            for one in given
        ]

    def _tokens(self, forecast: dict[BeamShape | None, float]) -> float:
        """Tokens made over tokens forecast; some steps count as forecast beforehand."""
        made = PRIOR_STEPS + sum(
            one.tokens / forecast.get(shape, one.forecast) for shape, one in self._chosen.items()
        )
        return _within(made / (PRIOR_STEPS + self._steps))

    def _seconds(self) -> float:
        """Price of a step over its forecast: drafts are not always verified whole."""
        taken = PRIOR_STEPS + sum(one.price_ratio for one in self._chosen.values())
        return _within(taken / (PRIOR_STEPS + self._steps))

    @property
    def _steps(self) -> float:
        return sum(one.steps for one in self._chosen.values())

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
        return replace(drafted, tokens_per_step=tokens, step_seconds=seconds)

    def observe(self, step: ObservedStep, forecast: Forecast, prices: StepPrices) -> None:
        """Learn from a step that was taken while a shape is chosen.

        Args:
            step: How it went; larger probes say nothing here.
            forecast: Of the chosen shape.
            prices: What steps cost.
        """
        if step.is_plain:
            price = 1.0 + prices.in_vain(step)
            for _ in range(step.repeats):
                self._plain.take(1.0, price)
                self._copied.age()
        elif any(record.copied for record in step.records):
            self._copied.take(step.tokens, prices.price(step))
            self._plain.age()
        elif step.shape is not None and step.shape == forecast.shape:
            self._take_drafted(step.shape, step.tokens, forecast, prices.seconds(step))

    def _take_drafted(
        self, shape: BeamShape, tokens: float, forecast: Forecast, seconds: float
    ) -> None:
        """A chosen draft made so many tokens in a step of that price."""
        self._plain.age()
        self._copied.age()
        for chosen in self._chosen.values():
            chosen.age()
        expected = forecast.tokens_per_step
        self._chosen.setdefault(shape, ChosenSteps()).take(
            min(tokens, LARGEST_STEP * expected),
            expected,
            min(seconds / forecast.step_seconds, LARGEST_STEP),
        )


def _within(ratio: float) -> float:
    return min(LARGEST, max(1 / LARGEST, ratio))


def _most(forecast: Forecast) -> float:
    """Tokens that a step can make at most."""
    return 1.0 + forecast.shape.length if forecast.shape else 1.0


def _copy(known: _Known) -> _Known:
    chosen = {shape: replace(one) for shape, one in known.chosen.items()}
    return _Known(replace(known.plain), replace(known.copied), chosen)
