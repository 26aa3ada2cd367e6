"""Beginning again with what paid before, after an answer in which it did not.

One odd question, such as one about a name that nobody knows, says little of the next one. What its
drafts taught is set aside when the next answer begins, and drafting goes on as before it; also
where shorter drafts were found meanwhile that pay on the odd one. Where that fails as well, what
was set aside is taken up again, and the next chances are given ever more rarely: the texts may have
changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .harder_text import ShapedDraft

# Answers in a row that are passed over at most.
MOST_PASSED_OVER = 16
# After so many chances in vain what pays by now takes the place of what did before.
FAILURES_TO_CHANGE = 4
# Temperatures as far apart as this are two: drafts that fail at the one may pay at the other.
TEMPERATURE_STEP = 0.1
HOTTEST = 2.0


class Saved(Protocol):
    """Something learnt, which can go back to what it was."""

    def save(self) -> Any:
        """What is known by now."""

    def restore(self, saved: Any, /) -> None:
        """Know that again, and no more."""

    def begin_again(self, drafts: Sequence[ShapedDraft], /) -> None:
        """Know little but what these drafts have shown: the text before them was another."""


def save_all(learnt: Sequence[Saved]) -> list[Any]:
    """What is known of each by now."""
    return [one.save() for one in learnt]


def restore_all(learnt: Sequence[Saved], saved: Sequence[Any]) -> None:
    """Know of each what was saved, and no more."""
    for one, known in zip(learnt, saved, strict=True):
        one.restore(known)


@dataclass
class Failures:
    """Chances in vain at one temperature.

    Attributes:
        in_a_row: How many.
        passed_over: Answers since drafts failed; None in the same one.
    """

    in_a_row: int = 0
    passed_over: float | None = None


class SecondChance:
    """What was known when the last answer began at whose beginning drafts paid.

    Failures are counted for each temperature: the drafts of a text drawn at 1.5 say little of those
    of one drawn at 0.

    Args:
        *learnt: What is kept of it.
    """

    def __init__(self, *learnt: Saved) -> None:
        self._learnt = learnt
        self._kept: list[Any] = []  # of each, once drafts have paid
        self._set_aside: list[Any] = []  # of each, while a second chance is given
        self._account = 0.0  # what it held when a second chance was given
        self._failures = Failures()  # at the temperature of this answer
        self._by_temperature = {0: self._failures}
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether drafts failed since, that paid then, and no second chance was given yet."""
        return self._failed

    @property
    def given(self) -> bool:
        """Whether one is given that has not been lost or won yet."""
        return bool(self._set_aside)

    @property
    def first(self) -> bool:
        """Whether no chance was in vain at this temperature since drafts paid."""
        return self._failures.in_a_row <= 1

    def sample_at(self, temperature: float) -> None:
        """An answer begins that is drawn at this temperature."""
        step = round(min(temperature, HOTTEST) / TEMPERATURE_STEP)
        self._failures = self._by_temperature.setdefault(step, Failures())

    def keep(self, account: float, answers: float) -> None:
        """An answer begins, and drafts are still made.

        As long as a second chance has lost more than it made it is not known whether they pay.

        Args:
            account: What drafts may lose by now, see :class:`Allowance`.
            answers: See :meth:`due`.
        """
        if self._set_aside and (not answers or account < self._account):
            return
        if self._kept and self._failed and self._failures.in_a_row < FAILURES_TO_CHANGE:
            return
        self._kept, self._set_aside = save_all(self._learnt), []
        self._failures.in_a_row, self._failed = 0, False

    def fail(self) -> None:
        """Drafts do not pay any more, as far as this answer goes."""
        if self._failed:
            return  # what was found meanwhile failed, too
        self._failures.in_a_row += 1
        self._failures.passed_over = None
        self._failed = True
        if self._set_aside:
            restore_all(self._learnt, self._set_aside)
            self._set_aside = []

    def due(self, answers: float) -> bool:
        """An answer begins after one that failed: whether it is to be as if there had been none.

        Args:
            answers: What was decoded since the last one began: 1, or less if it was short; 0 where
                it was decoded by others, who learn from it.
        """
        if not answers:
            return False
        failures = self._failures
        passed_over = failures.passed_over
        failures.passed_over = 0.0 if passed_over is None else passed_over + answers
        wanted = min(2**failures.in_a_row // 4, MOST_PASSED_OVER)
        return bool(self._kept) and failures.passed_over >= wanted

    def take(self, account: float) -> None:
        """Know what was known then.

        Args:
            account: What may be lost now.
        """
        self._set_aside = save_all(self._learnt)
        self._account, self._failed = account, False
        restore_all(self._learnt, self._kept)
