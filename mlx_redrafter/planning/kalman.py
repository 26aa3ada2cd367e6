"""A Kalman filter for sums of slowly changing quantities, which jump now and then.

There are several hypotheses about each measurement: mostly nothing happened, now and then the
components jumped at that very moment, or the measurement was delayed by something of its own and
says nothing. The filter updates under each of them and merges the results by how likely each makes
the measurement (a generalised pseudo-Bayesian filter of first order: Bar-Shalom, Li and
Kirubarajan, Estimation with Applications to Tracking and Navigation, 2001). What was taken for a
jump is taken back where the next measurement shows that there was none, since the covariance keeps
which components may have changed in place of which. The noise of measurements is learnt from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .acceptance import FloatArray

# Standard deviation of a measurement: at first, at least, at most.
FIRST_NOISE, LEAST_NOISE, LARGEST_NOISE = 0.1, 0.05, 0.5
# Share of what one measurement says of it that is believed; an innovation counts for no more than
# so many standard deviations.
NOISE_RATE = 0.05
LARGEST_INNOVATION = 3.0


@dataclass(frozen=True)
class Component:
    """What is known of one component of the state before anything is measured.

    Attributes:
        deviation: Standard deviation from 0.
        drift: The same, of its change in a step.
        jump: The same, of its change when it jumps.
        memory: What is left of it after a step.
    """

    deviation: float
    drift: float
    jump: float = 0.0
    memory: float = 1.0


@dataclass(frozen=True)
class Hypothesis:
    """What may have happened at a measurement.

    Attributes:
        probability: Of it, beforehand.
        jumped: Whether the components jumped just before.
        delay: Standard deviation of what the measurement is off by, beside its usual noise.
    """

    probability: float
    jumped: bool = False
    delay: float = 0.0


class KalmanFilter:
    """Means and covariance of the components by now.

    Args:
        components: To begin with.
        hypotheses: About each measurement.
    """

    def __init__(self, components: Sequence[Component], hypotheses: Sequence[Hypothesis]):
        self._hypotheses = tuple(hypotheses)
        self._noise = FIRST_NOISE**2
        self._means, self._covariance = np.zeros(0), np.zeros((0, 0))
        self._components: list[Component] = []
        self._memory, self._drift, self._jump = np.zeros(0), np.zeros(0), np.zeros(0)
        for component in components:
            self.add(component)

    def add(self, component: Component) -> int:
        """Track one more; returns its place."""
        place = len(self._means)
        self._components.append(component)
        self._means = np.append(self._means, 0.0)
        self._memory = np.append(self._memory, component.memory)
        self._drift = np.append(self._drift, component.drift**2)
        self._jump = np.append(self._jump, component.jump**2)
        self._covariance = np.pad(self._covariance, (0, 1))
        self._covariance[place, place] = component.deviation**2
        return place

    def reset(self, place: int) -> None:
        """Nothing is known of a component any more."""
        self._means[place] = 0.0
        self._covariance[place] = self._covariance[:, place] = 0.0
        self._covariance[place, place] = self._components[place].deviation ** 2

    def mean(self, place: int) -> float:
        """The expected value of a component."""
        return float(self._means[place])

    def deviation(self, weights: FloatArray) -> float:
        """Standard deviation of a weighted sum of the components."""
        return math.sqrt(max(0.0, float(weights @ self._covariance @ weights)))

    def weights(self, given: Mapping[int, float]) -> FloatArray:
        """Weights of all components, from those that are not 0, by place."""
        weights = np.zeros(len(self._means))
        weights[list(given)] = list(given.values())
        return weights

    def update(self, weights: FloatArray, value: float, steps: int = 1) -> None:
        """Learn from a measurement.

        Args:
            weights: Of the components in it.
            value: Their weighted sum; the mean of several measurements, if ``steps`` is larger.
            steps: How many there were, and how many steps went by.
        """
        self._predict(steps)
        shared, jumps = self._covariance @ weights, self._jump * weights
        innovation = value - float(weights @ self._means)
        known, jumped = float(weights @ shared), float(weights @ jumps)
        # Under a hypothesis the gain is ``shared``, where it jumped with ``jumps``, over the
        # innovation's variance. Merged, these are the factors of both in the gain, and of their
        # products in the covariance.
        gain = jump_gain = squares = jump_squares = jump_probability = 0.0
        usual = known + self._noise / steps
        for one, probability, variance in self._posterior(innovation, usual, jumped):
            square = probability * (innovation**2 - variance) / variance**2
            gain += probability / variance
            squares += square
            if one.jumped:
                jump_gain += probability / variance
                jump_squares += square
                jump_probability += probability
        change = gain * shared + jump_gain * jumps
        self._means += innovation * change
        self._covariance += _product(squares * shared + jump_squares * jumps, shared)
        self._covariance += _product(jump_squares * (shared + jumps), jumps)
        self._covariance -= _product(innovation**2 * change, change)
        self._covariance.flat[:: len(jumps) + 1] += jump_probability * self._jump
        self._adapt_noise(innovation**2, known, steps)

    def _predict(self, steps: int) -> None:
        left = self._memory if steps == 1 else self._memory**steps
        self._means *= left
        self._covariance *= _product(left, left)
        self._covariance.flat[:: len(left) + 1] += steps * self._drift

    def _posterior(
        self, innovation: float, usual: float, jumped: float
    ) -> Iterator[tuple[Hypothesis, float, float]]:
        """Each hypothesis with its probability and the innovation's variance under it.

        Args:
            innovation: By how much the measurement is larger than was expected.
            usual: Its variance where nothing happened.
            jumped: What is added to that where the components jumped.
        """
        variances = [usual + one.jumped * jumped + one.delay**2 for one in self._hypotheses]
        likelihoods = [
            math.log(one.probability) - 0.5 * (innovation**2 / variance + math.log(variance))
            for one, variance in zip(self._hypotheses, variances, strict=True)
        ]
        largest = max(likelihoods)
        likelihoods = [math.exp(one - largest) for one in likelihoods]
        total = sum(likelihoods)
        for one, likelihood, variance in zip(self._hypotheses, likelihoods, variances, strict=True):
            yield one, likelihood / total, variance

    def _adapt_noise(self, squared: float, known: float, steps: int) -> None:
        """Learn how noisy measurements are, from the square of an innovation."""
        usual = known + self._noise / steps
        beyond = min(squared, LARGEST_INNOVATION**2 * usual) - known
        noise = self._noise + NOISE_RATE * (max(0.0, beyond) * steps - self._noise)
        self._noise = min(LARGEST_NOISE**2, max(LEAST_NOISE**2, noise))


def _product(left: FloatArray, right: FloatArray) -> FloatArray:
    """The outer product; numpy's own takes several times as long for so few numbers."""
    return left[:, None] * right
