"""Plain steps among chosen drafts, which tell how long a plain step takes by now."""

from __future__ import annotations

import math

# Drafts between two breaks: no fewer, or breaks cost more than they tell; and no more, times the
# square of what drafts gain, since what is not looked at may have changed by more than is thought.
LEAST_APART, MOST_APART = 16, 80
# The fewest, where plain decoding may be as fast as drafting: where the logarithm of what drafts
# gain is within a standard deviation of 0, less what is not worth knowing.
NOT_WORTH_KNOWING = 0.05
# Plain steps that such a break waits for before the next draft is chosen: one more is on its way by
# then, and one in the middle overlaps on both sides, as in plain decoding.
BREAK_STEPS = 2
# As long as hardly one was seen, drafts are so far apart where they are said to cost less; twice as
# many elsewhere.
PLAIN_EVERY_UNSEEN = 4
# Where drafts are said to gain less than this, costs that were measured under load may be all of
# it: so many plain steps in a row come first, in which plain decoding shows what it takes.
DOUBTFUL_GAIN = 1.6
OPENING_STEPS = 5


class PlainBreaks:
    """Counts drafts in a row, and the plain steps that come before the first of them.

    Attributes:
        drafts: Steps that drafted since the last plain one.
    """

    def __init__(self) -> None:
        self.drafts = 0
        self._between = LEAST_APART
        self._left = 0  # plain steps of a break that has begun

    @property
    def due(self) -> bool:
        """Whether the next step is to be plain."""
        return self._left > 0 or self.drafts >= self._between

    def take_plain(self, steps: int) -> None:
        """So many plain steps were taken."""
        if self._left == 0 and self.drafts >= self._between:
            self._left = BREAK_STEPS
        self.drafts = 0
        self._left = max(0, self._left - steps)

    def space(self, gain: float, *, seen: bool, told: bool, free: bool, deviation: float) -> None:
        """Say how far apart they are to be.

        Args:
            gain: What drafts make, times plain.
            seen: Whether enough plain steps were seen to say how long one takes.
            told: Whether some in a row were, since the costs were measured.
            free: Whether a draft is said to cost less than a plain step.
            deviation: Of what drafts cost beside plain steps, see :meth:`Clocks.deviation`.
        """
        first = not told and self.drafts == 0
        doubtful = gain < DOUBTFUL_GAIN and not free
        self._left = OPENING_STEPS if first and doubtful else self._left
        if not seen:
            self._between = PLAIN_EVERY_UNSEEN * (1 if free else 2)
            return
        gain = max(1.0, gain)
        if deviation > math.log(gain) + NOT_WORTH_KNOWING:
            self._between = LEAST_APART
            return
        self._between = round(MOST_APART * gain**2)
