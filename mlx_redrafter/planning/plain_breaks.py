"""Plain steps among chosen drafts, which tell how long a plain step takes by now."""

from __future__ import annotations

# A plain step after so many drafts, times the square of what they gain: the less that is, the more
# it matters how long a plain step takes by now, and the less one costs.
PLAIN_EVERY = 24
# And as long as hardly one was seen, where drafts are said to cost less; twice as many elsewhere.
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
        self._between = PLAIN_EVERY
        self._opening = 0

    @property
    def due(self) -> bool:
        """Whether the next step is to be plain."""
        return self._opening > 0 or self.drafts >= self._between

    def take_plain(self, steps: int) -> None:
        """So many plain steps were taken."""
        self.drafts = 0
        self._opening = max(0, self._opening - steps)

    def space(self, gain: float, *, seen: bool, told: bool, free: bool) -> None:
        """Say how far apart they are to be.

        Args:
            gain: What drafts make, times plain.
            seen: Whether enough plain steps were seen to say how long one takes.
            told: Whether some in a row were, since the costs were measured.
            free: Whether a draft is said to cost less than a plain step.
        """
        unseen = PLAIN_EVERY_UNSEEN * (1 if free else 2)
        first = not told and self.drafts == 0
        doubtful = gain < DOUBTFUL_GAIN and not free
        self._opening = OPENING_STEPS if first and doubtful else 0
        self._between = round(PLAIN_EVERY * max(1.0, gain) ** 2) if seen else unseen
