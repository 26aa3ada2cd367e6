"""What chosen drafts made, against what was forecast for them."""

from __future__ import annotations

# Decay of what was made and forecast, a step; and the steps that count as forecast beforehand.
FORGET = 0.99
PRIOR_STEPS = 10.0
# A forecast is put right by no more than this.
LARGEST = 2.0


class Honesty:
    """Factors that put forecasts of drafted steps right, and the share of steps without a draft.

    A step may verify less than its whole draft, and drafts pause where they fail: both are left
    out of what trees tell.

    Attributes:
        paused: Share of the steps since there is a choice that were plain ones.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drafting ended: what was forecast wrong then says nothing of later forecasts."""
        self.paused = 0.0
        self._tokens = [PRIOR_STEPS, PRIOR_STEPS]  # made, forecast, both as shares of a forecast
        self._seconds = [PRIOR_STEPS, PRIOR_STEPS]

    def save(self) -> tuple[float, list[float], list[float]]:
        """What is known by now, for :meth:`restore`."""
        return self.paused, list(self._tokens), list(self._seconds)

    def restore(self, saved: tuple[float, list[float], list[float]]) -> None:
        """Take back what was known."""
        self.paused, self._tokens, self._seconds = saved[0], list(saved[1]), list(saved[2])

    @property
    def tokens(self) -> float:
        """Tokens made over tokens forecast."""
        return _ratio(self._tokens)

    @property
    def seconds(self) -> float:
        """Seconds taken over seconds forecast."""
        return _ratio(self._seconds)

    def take_plain(self) -> None:
        """A step of a text that drafts was plain."""
        self.paused += (1 - FORGET) * (1.0 - self.paused)

    def take_drafted(self, tokens: float, seconds: float) -> None:
        """A chosen draft made so many times the tokens forecast in so many times the seconds."""
        self.paused *= FORGET
        for kept, share in ((self._tokens, tokens), (self._seconds, seconds)):
            kept[0] = FORGET * kept[0] + min(share, 4.0)
            kept[1] = FORGET * kept[1] + 1.0


def _ratio(kept: list[float]) -> float:
    return min(LARGEST, max(1 / LARGEST, kept[0] / kept[1]))
