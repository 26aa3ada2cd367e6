"""How many copied tokens to verify, and whether guesses are worth their draft beside them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ..drafting.shape import BeamShape
from ..engine.copy_pricing import CopyShare
from .num_nodes import best_prefix, filling

# What copies have to gain, in plain steps, before a step is no longer plain: chances are estimates,
# and the largest of several estimates is mostly too large.
MARGIN = 0.03
# Share of what copies would have gained after a token that none foretold that is believed of the
# next such token.
SURPRISE_RATE = 0.1
# Tokens that are not worth waiting for on any machine.
LEAST_GAIN = 0.01


class Prices(Protocol):
    """What steps cost and yield by now."""

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of rows whose forward was timed, ascending from 1."""

    @property
    def rate(self) -> float:
        """Tokens a second, as decoding goes on the whole."""

    def plain_seconds(self, context: int) -> float:
        """Seconds of a plain step."""

    def apart_seconds(self, context: int) -> float:
        """Seconds lost where two steps in a row do not overlap."""

    def check_seconds(self, rows: int, context: int) -> float:
        """Seconds of a step that verifies so many rows, a draft left out."""

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft."""

    def guessed(self, shape: BeamShape) -> float:
        """Guesses accepted in a step of that shape; 0 where nothing is known of it."""


class CopyPlanner:
    """Prices copied tokens by what they add to a step's tokens and to its time.

    All chances it is told are of nodes in the order in which they would be verified, the root left
    out; of sequences that are decoded together, means over the sequences.

    Args:
        prices: Says what steps cost and yield; it may have to be measured first.
    """

    def __init__(self, prices: Callable[[], Prices]):
        self._prices = prices
        self._after_surprise = 0.0  # tokens that copies gain after a token that none foretold

    def num_nodes(self, chances: Sequence[float], context: int) -> int:
        """How many of nodes that cost no draft any more to verify; 0 is a plain step."""
        return self._best(chances, context)[0]

    def waits_for_copies(self, first: float, after: Sequence[float], context: int) -> bool:
        """Whether the next step is not to begin before the token before it is known.

        Args:
            first: Chance that this token is the one that would be copied.
            after: If it is, the chances of the copied tokens after it.
            context: Tokens before the step.
        """
        gained = first * self._best(after, context)[1] + (1.0 - first) * self._after_surprise
        if gained < LEAST_GAIN:
            return False
        prices = self._prices()
        return gained > prices.rate * prices.apart_seconds(context)

    def take_surprise(self, chances: Sequence[float], context: int) -> None:
        """Learn what copies gain after a token that none foretold.

        Args:
            chances: Of the copied nodes.
            context: Tokens before the step.
        """
        gained = self._best(chances, context)[1]
        self._after_surprise += SURPRISE_RATE * (gained - self._after_surprise)

    def share(self, shape: BeamShape, chances: Sequence[float], context: int) -> CopyShare:
        """What to verify of copies and of a draft of ``shape`` that would have to be made.

        Args:
            shape: The draft.
            chances: Of the copied nodes.
            context: Tokens before the step.
        """
        prices = self._prices()
        guessed = prices.guessed(shape)
        saved = prices.plain_seconds(context) - prices.draft_seconds(shape)
        # How deep guesses are right is not known, so each depth is taken for equally likely; what
        # is copied counts where the guesses are wrong.
        missed = 1.0 / (1.0 + guessed)
        gains = {}
        for count in filling(prices.sizes, len(chances), 1 + shape.nodes):
            seconds = _tile_seconds(prices, context, 1 + shape.nodes + count) - saved
            gain = guessed + missed * sum(chances[:count]) - prices.rate * seconds
            gains[CopyShare(count, shape.nodes)] = gain
        alone, gain = self._best(chances, context)
        if alone:
            gains[CopyShare(alone, 0)] = gain
        return max(gains, key=gains.__getitem__)

    def drafts_after(self, whole: float, shape: BeamShape) -> bool:
        """Whether the next step's draft is worth making although copies may go on.

        Args:
            whole: Chance that all of a copied chain is right, and the next step copies on.
            shape: The draft.
        """
        prices = self._prices()
        return (1.0 - whole) * prices.guessed(shape) > prices.rate * prices.draft_seconds(shape)

    def _best(self, chances: Sequence[float], context: int) -> tuple[int, float]:
        """The best number of nodes, and what it gains over a plain step, in tokens."""
        if not chances:
            return 0, 0.0  # which takes no prices
        prices = self._prices()
        floor = (1.0 - MARGIN) * prices.plain_seconds(context)
        seconds = partial(_tile_seconds, prices, context)
        return best_prefix(chances, prices.sizes, seconds, prices.rate, floor)


def _tile_seconds(prices: Prices, context: int, rows: int) -> float:
    """Seconds of a forward; between two timed numbers of rows those of the larger one: a tile that
    is begun costs what a full one does. Copies come in any number, the shapes of drafts fill one.
    """
    place = bisect_left(prices.sizes, rows)
    rows = prices.sizes[place] if place < len(prices.sizes) else rows
    return prices.check_seconds(rows, context)
