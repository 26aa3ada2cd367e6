"""How likely a drafted token is to be accepted after those before it, if all depths are alike."""

from __future__ import annotations

LEAST, LARGEST = 0.1, 0.95
_CLOSE = 0.01


def depth_chance(length: int, accepted: float) -> float:
    """The chance, between ``LEAST`` and ``LARGEST``: an estimate is not to rule anything out.

    Args:
        length: Tokens of the draft.
        accepted: Those that are accepted in the mean.
    """
    low, high = LEAST, LARGEST
    while high - low > _CLOSE:
        chance = (low + high) / 2
        more = chance * (1.0 - chance**length) / (1.0 - chance) < accepted
        low, high = (chance, high) if more else (low, chance)
    return (low + high) / 2
