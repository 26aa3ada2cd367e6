"""Several quantities, estimated from noisy sums of them, of which the first may jump.

A Kalman filter whose measurements have one of several stories behind them: mostly nothing
happened, now and then the first quantity changed at that very moment, or the measurement is
worthless. Each story is followed, and what they say is brought together by how likely each makes
the measurement. What was taken for a jump is taken back where the next measurement shows that there
was none, since it is remembered which quantities may have changed in place of which. How
noisy measurements are is learnt from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .acceptance import FloatArray

# Standard deviation of a measurement: at first, at least, at most; and the share of what a single
# one says of it that is believed. It says no more than this many times what was thought.
FIRST_NOISE, LEAST_NOISE, LARGEST_NOISE = 0.1, 0.05, 0.5
NOISE_RATE = 0.05
LARGEST_SURPRISE = 3.0


@dataclass(frozen=True)
class Quantity:
    """What is known of a quantity before anything is measured.

    Attributes:
        spread: Standard deviation from 0.
        drift: The same, of its change in a step.
        memory: What is left of it after a step.
    """

    spread: float
    drift: float
    memory: float = 1.0


@dataclass(frozen=True)
class Story:
    """What may be behind a measurement.

    Attributes:
        chance: How often it is.
        jump: Standard deviation of what the first quantity changed by just before.
        delay: The same, of what the measurement alone is off by, beside its usual noise.
    """

    chance: float
    jump: float = 0.0
    delay: float = 0.0


class Estimate:
    """What is known of the quantities by now.

    Args:
        quantities: To begin with.
        stories: What may be behind a measurement.
    """

    def __init__(self, quantities: Sequence[Quantity], stories: Sequence[Story]):
        self._stories = tuple(stories)
        self._noise = FIRST_NOISE**2
        self._means, self._covariance = np.zeros(0), np.zeros((0, 0))
        self._memory, self._drift = np.zeros(0), np.zeros(0)
        for quantity in quantities:
            self.add(quantity)

    def add(self, quantity: Quantity) -> int:
        """Estimate one more; returns its place."""
        place = len(self._means)
        self._means = np.append(self._means, 0.0)
        self._memory = np.append(self._memory, quantity.memory)
        self._drift = np.append(self._drift, quantity.drift**2)
        self._covariance = np.pad(self._covariance, (0, 1))
        self._covariance[place, place] = quantity.spread**2
        return place

    def forget(self, place: int, quantity: Quantity) -> None:
        """Nothing is known of a quantity any more."""
        self._means[place] = 0.0
        self._covariance[place] = self._covariance[:, place] = 0.0
        self._covariance[place, place] = quantity.spread**2

    def mean(self, place: int) -> float:
        """The expected value of a quantity."""
        return float(self._means[place])

    def deviation(self, parts: FloatArray) -> float:
        """Standard deviation of a sum of them by what is known, see :meth:`parts`."""
        return math.sqrt(max(0.0, float(parts @ self._covariance @ parts)))

    def parts(self, shares: Mapping[int, float]) -> FloatArray:
        """What :meth:`take` measures: how much of each quantity, by place; the first whole."""
        parts = np.zeros(len(self._means))
        parts[list(shares)] = list(shares.values())
        return parts

    def take(self, parts: FloatArray, value: float, steps: int = 1) -> None:
        """Learn from a measurement.

        Args:
            parts: Of which quantities, see :meth:`parts`.
            value: Their sum; the mean of several measurements, if ``steps`` is larger.
            steps: How many there were, and how many steps went by.
        """
        self._age(steps)
        shared = self._covariance @ parts
        surprise = value - float(parts @ self._means)
        known = float(parts @ shared)
        # A story's gain is its share of the covariance, and its jump's of the first quantity; in
        # the mean over the stories these are what follows.
        gain = first = both = mixed = jumped = 0.0
        for chance, jump, spread in self._weighed(surprise, known + self._noise / steps):
            gain += chance / spread
            first += chance * jump / spread
            left = chance * (surprise**2 - spread) / spread**2
            both, mixed, jumped = both + left, mixed + left * jump, jumped + left * jump**2
            jumped += chance * jump
        self._means += gain * surprise * shared
        self._means[0] += first * surprise
        changed = (both - (surprise * gain) ** 2) * shared
        self._covariance += changed[:, None] * shared
        column = (mixed - surprise**2 * gain * first) * shared
        self._covariance[0] += column
        self._covariance[:, 0] += column
        self._covariance[0, 0] += jumped - (surprise * first) ** 2
        self._hear(surprise**2, known, steps)

    def _hear(self, squared: float, known: float, steps: int) -> None:
        """Learn how noisy measurements are, from the square of a surprise."""
        usual = known + self._noise / steps
        beyond = min(squared, LARGEST_SURPRISE**2 * usual) - known
        noise = self._noise + NOISE_RATE * (max(0.0, beyond) * steps - self._noise)
        self._noise = min(LARGEST_NOISE**2, max(LEAST_NOISE**2, noise))

    def _weighed(self, surprise: float, usual: float) -> Iterator[tuple[float, float, float]]:
        """(chance, variance of the jump, variance of the measurement) of each story.

        Args:
            surprise: Of the measurement.
            usual: Its variance where nothing happened.
        """
        spreads = [usual + one.jump**2 + one.delay**2 for one in self._stories]
        likely = [
            math.log(one.chance) - 0.5 * (surprise**2 / spread + math.log(spread))
            for one, spread in zip(self._stories, spreads, strict=True)
        ]
        most = max(likely)
        chances = [math.exp(one - most) for one in likely]
        whole = sum(chances)
        for story, chance, spread in zip(self._stories, chances, spreads, strict=True):
            yield chance / whole, story.jump**2, spread

    def _age(self, steps: int) -> None:
        left = self._memory if steps == 1 else self._memory**steps
        self._means *= left
        self._covariance *= left[:, None] * left
        self._covariance.flat[:: len(left) + 1] += steps * self._drift
