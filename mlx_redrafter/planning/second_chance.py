"""Beginning again with what paid before, after an answer in which it did not.

One odd question, such as one about a name that nobody knows, says little of the next one. What its
drafts taught is set aside when the next answer begins, and drafting goes on as before it. Where
that fails as well, the texts have changed: the next chances are given ever more rarely.
"""

from __future__ import annotations

from typing import Any, Protocol

# Answers in a row that are passed over at most.
MOST_PASSED_OVER = 16


class Saved(Protocol):
    """Something learnt, which can go back to what it was."""

    def save(self) -> Any:
        """What is known by now."""

    def restore(self, saved: Any, /) -> None:
        """Know that again, and no more."""


class SecondChance:
    """What was known when the last answer began at whose beginning drafts paid.

    Args:
        *learnt: What is kept of it.
    """

    def __init__(self, *learnt: Saved) -> None:
        self._learnt = learnt
        self._kept: list[Any] = []  # of each, once drafts have paid
        self._failures = 0
        self._passed_over = 0

    def keep(self) -> None:
        """An answer begins, and drafts paid until now."""
        self._kept = [one.save() for one in self._learnt]
        self._failures = 0

    def fail(self) -> None:
        """Drafts do not pay any more, as far as this answer goes."""
        self._failures += 1
        self._passed_over = 0

    def due(self) -> bool:
        """An answer begins after one that failed: whether it is to be as if there had been none."""
        passed_over, self._passed_over = self._passed_over, self._passed_over + 1
        wanted = min(2**self._failures // 2, MOST_PASSED_OVER + 1) - 1
        return bool(self._kept) and passed_over >= wanted

    def take(self) -> None:
        """Know what was known then."""
        for one, saved in zip(self._learnt, self._kept, strict=True):
            one.restore(saved)
