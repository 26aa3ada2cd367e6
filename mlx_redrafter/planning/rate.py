"""Tokens that decoding makes on the whole, in the time of a plain step."""

from __future__ import annotations

from ..engine.shape_planner import ObservedStep
from .forgetting import DOUBTED, FORGET

# A step may have waited for something that is not its own: it counts for up to so many times what
# was expected.
LARGEST_SHARE = 2.0


def paid(seconds: float, expected: float, plain: float) -> float:
    """What a step took, in plain steps; of what it waited for little is counted.

    Args:
        seconds: What it took.
        expected: Seconds that it was expected to take by now.
        plain: Seconds of a plain step by now.
    """
    return min(LARGEST_SHARE * expected, seconds) / plain


class Rate:
    """Counted in plain steps, so that what a loaded machine took says nothing once it is free.

    Attributes:
        tokens: Tokens made of late.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._plain_steps = 0.0

    @property
    def per_plain_step(self) -> float:
        """Tokens made in the time of a plain step; 1 before anything is known."""
        return self.tokens / self._plain_steps if self._plain_steps else 1.0

    def save(self) -> tuple[float, float]:
        """What is known by now, for :meth:`restore`."""
        return self.tokens, self._plain_steps

    def restore(self, saved: tuple[float, float]) -> None:
        """Forget what was counted since."""
        self.tokens, self._plain_steps = saved

    def begin_again(self, drafts: object) -> None:  # noqa: ARG002
        """Count what was made of another text as a few steps."""
        self.tokens *= DOUBTED
        self._plain_steps *= DOUBTED

    def add(self, step: ObservedStep, taken: float) -> None:
        """Count a step that took so many plain steps, see :func:`paid`, or several alike."""
        forget = FORGET**step.repeats
        self.tokens = forget * self.tokens + step.made
        self._plain_steps = forget * self._plain_steps + step.repeats * taken
