"""What an answer begins with: what the last one ended with, or what paid before an unlike one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..engine.step import StepRecord
from .allowance import Allowance
from .easy_answers import EasyAnswers
from .second_chance import Saved, SecondChance
from .trials import SHORT_ANSWER


class Beginnings:
    """Brings together what is set aside after answers that were unlike those before them.

    Args:
        *learnt: What is set aside.

    Attributes:
        second_chance: After an answer in which drafts failed.
        easy: After one in which they made much more.
    """

    def __init__(self, *learnt: Saved) -> None:
        self.second_chance, self.easy = SecondChance(*learnt), EasyAnswers(*learnt)
        self._answers = 0.0  # since the last one began, at most 1
        self._given = False  # a second chance

    def begin(self, expected: float, made: float, account: Allowance) -> bool:
        """An answer begins.

        Args:
            expected: Tokens that a step is expected to make; 0 where nothing is drafted.
            made: Tokens that were decoded since the last one began.
            account: What may be lost.

        Returns:
            Whether something else is known now, so that the choice has to be made again.
        """
        chance, self._answers = self.second_chance, min(1.0, made / SHORT_ANSWER)
        wanted = (not expected or chance.failed) and chance.due(self._answers)
        self._given = wanted and account.afford_second_chance()
        if self._given:
            chance.take(account.total)
            return True
        if not expected:
            return False
        changed = self._answers >= 1.0 and self.easy.begin(expected)
        chance.keep(account.total, self._answers)
        return changed

    def begun(self, expected: float) -> None:
        """It is decided what the answer begins with, see :meth:`begin`."""
        if self._given and not expected:
            self.second_chance.fail()
        if self._answers >= 1.0:
            self.easy.begun(expected)

    def take_draft(
        self, records: Sequence[StepRecord], length: int, forecast: float | None
    ) -> bool:
        """Drafts of a step were verified; see :meth:`EasyAnswers.take_draft`."""
        guesses = [record.guessed for record in records]
        accepted = sum(one.accepted for one in guesses) / len(guesses)
        verified = max(max(one.tree.depths) for one in guesses)
        return self._keep_if(self.easy.take_draft(accepted, verified, length, forecast))

    def go_back(self) -> bool:
        """The choice pays no more: whether what paid before the text became easy is known now."""
        return self._keep_if(self.easy.go_back())

    def _keep_if(self, changed: bool) -> bool:
        if changed:  # what pays now is what an odd answer would be followed by
            self.second_chance.keep(math.inf, 1.0)
        return changed
