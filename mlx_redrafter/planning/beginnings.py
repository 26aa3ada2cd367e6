"""What an answer begins with: what the last one ended with, or what paid before an unlike one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from .allowance import Allowance
from .easy_answers import EasyAnswers
from .harder_text import HarderText
from .second_chance import Saved, SecondChance
from .trials import SHORT_ANSWER


class Beginnings:
    """Brings together what is set aside after answers that were unlike those before them.

    Args:
        *learnt: What is set aside.

    Attributes:
        second_chance: After an answer in which drafts failed.
        easy: After one in which they made much more.
        harder: Tells where a text is harder than all that is known.
    """

    def __init__(self, *learnt: Saved) -> None:
        self.second_chance, self.easy = SecondChance(*learnt), EasyAnswers(*learnt)
        self.harder, self._learnt = HarderText(), learnt
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
            self.harder.forget()
            return True
        if not expected:
            return False
        changed = self._answers >= 1.0 and self.easy.begin(expected)
        if changed:
            self.harder.forget()
        chance.keep(account.total, self._answers)
        return changed

    def begun(self, expected: float, price: float, account: Allowance) -> None:
        """It is decided what the answer begins with, see :meth:`begin`.

        The first chance is not to end with a single draft that fails, however dear drafts are here.

        Args:
            expected: Tokens that a step is expected to make; 0 where nothing is drafted.
            price: What it costs, in plain steps.
            account: What may be lost.
        """
        if self._given and not expected:
            self.second_chance.fail()
        elif self._given and self.second_chance.first:
            account.bear(price)
        if self._answers >= 1.0:
            self.easy.begun(expected)

    def take_draft(
        self, records: Sequence[StepRecord], shape: BeamShape, forecast: float | None
    ) -> bool:
        """Drafts of a step were verified.

        Args:
            records: How they went.
            shape: What was drafted.
            forecast: Tokens of a draft that were expected to be accepted; None for a probe.

        Returns:
            Whether something else is known now, since the text is another than was thought.
        """
        guesses = [record.guessed for record in records]
        accepted = sum(one.accepted for one in guesses) / len(guesses)
        verified = [max(one.tree.depths) for one in guesses]
        easy = self.easy.take_draft(accepted, max(verified), shape.length, forecast)
        if self._keep_if(easy):
            return True
        harder = [
            self.harder.take_draft(shape, guess, depth, forecast)
            for guess, depth in zip(guesses, verified, strict=True)
        ]
        return any(harder) and self._begin_again()

    def _begin_again(self) -> bool:
        """The text is harder than what is known: know what was known of such ones, or little."""
        if self.go_back():
            return True
        if not self.second_chance.given:
            for one in self._learnt:
                one.begin_again(list(self.harder.since))
        self.fail()
        return True

    def fail(self) -> None:
        """Drafts do not pay any more, or not as they did, as far as this answer goes."""
        self.second_chance.fail()
        self.harder.forget()

    def go_back(self) -> bool:
        """The choice pays no more: whether what paid before the text became easy is known now."""
        return self._keep_if(self.easy.go_back())

    def _keep_if(self, changed: bool) -> bool:
        if changed:  # what pays now is what an odd answer would be followed by
            self.harder.forget()
            self.second_chance.keep(math.inf, 1.0)
        return changed
