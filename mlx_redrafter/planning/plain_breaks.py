"""Plain steps among chosen drafts, which tell how long a plain step takes by now."""

from __future__ import annotations

# A plain step after so many drafts, times the square of what they gain: the less that is, the more
# it matters how long a plain step takes by now, and the less one costs.
PLAIN_EVERY = 24
# A fourth of that at first, and where steps were not as expected; twice as many each time that they
# were, so many times: those of a break, and the drafts between two.
LEAST_TRUST, DOUBLINGS = 0.25, 4
# Plain steps that such a break waits for before the next draft is chosen: one more is on its way by
# then, and one in the middle overlaps on both sides, as in plain decoding.
BREAK_STEPS = 2
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
        self._left = 0  # plain steps of a break that has begun
        self._opened = False  # whether some came first, since the costs were measured

    @property
    def due(self) -> bool:
        """Whether the next step is to be plain."""
        return self._left > 0 or self.drafts >= self._between

    def take_draft(self) -> None:
        """A step drafted."""
        self.drafts += 1

    def take_plain(self, steps: int) -> None:
        """So many plain steps were taken."""
        if self._left == 0 and self.drafts >= self._between:
            self._left = BREAK_STEPS
        self.drafts = 0
        self._left = max(0, self._left - steps)

    def space(self, gain: float, *, seen: bool, told: bool, free: bool, agreed: int) -> None:
        """Say how far apart they are to be.

        Args:
            gain: What drafts make, times plain.
            seen: Whether enough plain steps were seen to say how long one takes.
            told: Whether some in a row were, since the costs were measured.
            free: Whether a draft is said to cost less than a plain step.
            agreed: How often in a row steps were as expected, see :class:`Clocks`.
        """
        unseen = PLAIN_EVERY_UNSEEN * (1 if free else 2)
        doubtful = gain < DOUBTFUL_GAIN and not free
        if told:
            self._opened = False
        elif doubtful and self.drafts == 0 and not self._opened:
            # Once: where plain steps never overlap, none in a row will tell.
            self._left, self._opened = OPENING_STEPS, True
        trust = LEAST_TRUST * 2 ** min(DOUBLINGS, agreed)  # there may have been thousands
        self._between = round(trust * PLAIN_EVERY * max(1.0, gain) ** 2) if seen else unseen
