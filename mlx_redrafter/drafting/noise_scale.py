"""How far a draft follows the noise that the target's choices will be drawn with.

Where the target itself is in doubt, the noise decides its token, and a drafter that adds the same
noise to its own log-probabilities guesses the outcome. Where the target is sure and only the
drafter is in doubt, the noise merely leads the draft astray. Which of the two a text is like is
seen from the target: how often its choice is not its likeliest token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

FORGET = 0.98
PRIOR_TOKENS = 8.0
# Before anything is known: ordinary text at temperature 1 has a swayed choice every few tokens.
PRIOR_SHARE = 0.25
# The share of swayed choices at which half of the noise is used. Above it noise is what decides
# most tokens that are in doubt at all, below it the drafter's own misses are.
HALF = 0.25


def _scale(share: Any) -> Any:
    return share**2 / (share**2 + HALF**2)


class NoiseScale:
    """The factor for a draft's noise, learnt from the choices as a text goes on.

    It concerns guesses only: whatever the drafter adds, the target's choices stay the same.
    """

    def __init__(self) -> None:
        self._flipped = PRIOR_SHARE * PRIOR_TOKENS
        self._seen = PRIOR_TOKENS

    @property
    def scale(self) -> float:
        """Factor from 0 (guess the likeliest token) to 1 (guess the drawn one)."""
        return float(_scale(self._flipped / self._seen))

    def scale_after(self, flipped_by_noise: mx.array, age: mx.array) -> mx.array:
        """The factor after a step's tokens that are not read yet, float32 ().

        Args:
            flipped_by_noise: For each node whether noise made its choice other than the likeliest,
                bool (n,).
            age: How many tokens before the last of the path each choice is, int (n,); negative
                off the path.
        """
        weight = mx.where(age >= 0, mx.power(FORGET, mx.maximum(age, 0)), 0.0)
        past = mx.power(FORGET, mx.max(age) + 1)
        seen = self._seen * past + weight.sum()
        return _scale((self._flipped * past + (weight * flipped_by_noise).sum()) / seen)

    def scale_after_one(self, flipped_by_noise: mx.array) -> mx.array:
        """:meth:`scale_after` a plain step, bool (1,): float32 (1,)."""
        seen = self._seen * FORGET + 1.0
        return _scale((self._flipped * FORGET + flipped_by_noise.astype(mx.float32)) / seen)

    def observe(self, flipped_by_noise: Sequence[bool]) -> None:
        """Learn from a step's tokens: for each, whether noise made it other than the likeliest."""
        for differs in flipped_by_noise:
            self._flipped = FORGET * self._flipped + differs
            self._seen = FORGET * self._seen + 1
