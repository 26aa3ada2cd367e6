"""Plain steps among chosen drafts, which tell how long a plain step takes by now."""

from __future__ import annotations

# A plain step after so many drafts, times the square of what they gain: the less that is, the more
# it matters how long a plain step takes by now, and the less one costs.
PLAIN_EVERY = 24
# And as long as hardly one was seen, where drafts are said to cost less; twice as many elsewhere.
PLAIN_EVERY_UNSEEN = 4


class PlainBreaks:
    """Counts drafts in a row.

    Attributes:
        drafts: Steps that drafted since the last plain one.
    """

    def __init__(self) -> None:
        self.drafts = 0
        self._between = PLAIN_EVERY

    @property
    def due(self) -> bool:
        """Whether the next step is to be plain."""
        return self.drafts >= self._between

    def space(self, gain: float, *, seen: bool, free: bool) -> None:
        """Say how far apart they are to be.

        Args:
            gain: What drafts make, times plain.
            seen: Whether enough plain steps were seen to say how long one takes.
            free: Whether a draft is said to cost less than a plain step.
        """
        unseen = PLAIN_EVERY_UNSEEN * (1 if free else 2)
        self._between = round(PLAIN_EVERY * max(1.0, gain) ** 2) if seen else unseen
