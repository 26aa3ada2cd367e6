"""Whether a text has become much harder to guess than what is known of drafts says."""

from __future__ import annotations

import math
from collections import deque

from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from .depth_chance import LEAST, depth_chance

# What a drafted token's chance may have fallen to: hardly any, or a share of what it was.
FALLEN = 0.5
# By so much, as a logarithm, drafts have to be likelier if it has; from the second figure on it is
# no time to look for larger shapes.
EVIDENCE, SUSPICION = 6.0, 3.0
# Drafts that are remembered since the text may have changed.
REMEMBERED = 32

ShapedDraft = tuple[BeamShape, StepRecord]


class HarderText:
    """Two sequential tests (Page, "Continuous inspection schemes", 1954), begun again wherever the
    drafts so far speak for no change: what came before that place says nothing of the text now.

    Attributes:
        since: Drafts made since the text may have changed, shape and outcome, the latest last.
    """

    def __init__(self) -> None:
        self.since: deque[ShapedDraft] = deque(maxlen=REMEMBERED)
        self._evidence = [0.0, 0.0]
        self._chance = LEAST  # of a drafted token, by what is known

    @property
    def suspected(self) -> bool:
        """Whether drafts fail as they seldom do where nothing has changed."""
        return max(self._evidence) >= SUSPICION

    def forget(self) -> None:
        """Something else is known by now."""
        self.since.clear()
        self._evidence = [0.0, 0.0]

    def take_draft(
        self, shape: BeamShape, record: StepRecord, verified: int, forecast: float | None
    ) -> bool:
        """A draft was verified, or as much of it as was worth it.

        Args:
            shape: What was drafted.
            record: How it went, without copies.
            verified: Tokens that could have been accepted.
            forecast: Those of the whole draft that were expected to be; None where that is not
                known.

        Returns:
            Whether the text has become harder.
        """
        if not verified:
            return False
        if forecast is not None:
            self._chance = depth_chance(shape.length, forecast)
        self.since.append((shape, record))
        own = self._chance
        self._evidence = [
            max(0.0, before + told(record.accepted, verified, own, other))
            for before, other in zip(self._evidence, (FALLEN * own, LEAST), strict=True)
        ]
        if not any(self._evidence):
            self.since.clear()
        return max(self._evidence) >= EVIDENCE


def told(accepted: float, verified: int, own: float, other: float) -> float:
    """By how much a draft is likelier with another chance of its tokens, as a logarithm.

    Args:
        accepted: Tokens of it that were accepted.
        verified: Those that could have been.
        own: The chance of each after those before it, as it is taken to be.
        other: The other one.
    """
    result = accepted * math.log(other / own)
    if accepted < verified:
        result += math.log((1.0 - other) / (1.0 - own))
    return result
