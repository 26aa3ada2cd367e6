"""Two kinds of texts: ordinary ones, and those of which steps make at least twice as many tokens.

One answer that repeats its prompt, or that the head knows by heart, says little of the next. So
what is known of drafts is kept twice, as it was before such an answer and as it was at its end, and
the next answer begins with what paid before. What its drafts make tells whether it is of the other
kind (a sequential test of one against the other: Page, "Continuous inspection schemes", 1954), and
then what is known of that is taken up at once; to learn it anew takes as long as an answer. After
several easy answers the next one begins as they ended.
"""

from __future__ import annotations

from typing import Any

from .depth_chance import LARGEST, LEAST, depth_chance
from .harder_text import told
from .second_chance import Saved, restore_all, save_all

# At the end of an easy answer a step is expected to make so many times the tokens of one at its
# beginning.
MORE = 2.0
# Easy answers in a row after which the next one is expected to be easy as well, and after which
# that is what is ordinary.
EXPECTED_AFTER, ORDINARY_AFTER = 2, 16
# By so much, as a logarithm, drafts have to be likelier in a text of the other kind; in the midst
# of an easy one by the second figure. To take a text for easy it is twice as much after each time
# that it was not after all, so many times; each answer takes one back.
EVIDENCE, EVIDENCE_LATER = 2.5, 5.0
DOUBLINGS = 2
# Drafts after which it is the midst.
FEW_DRAFTS = 4


class EasyAnswers:
    """What is known of both kinds of texts.

    Args:
        *learnt: What is kept of it.
    """

    def __init__(self, *learnt: Saved) -> None:
        self._learnt = learnt
        self._at_beginning: list[Any] = []  # of this answer
        self._tokens = 0.0  # of a step, as was expected then
        self._ordinary: list[Any] = []  # where the text is easy: what was known before
        self._easy: list[Any] = []  # once there was an easy one
        self._in_a_row = 0  # easy answers
        self._chances = {False: LEAST, True: LARGEST}  # of a drafted token, if easy
        self._evidence = 0.0  # for the other kind, as a logarithm
        self._drafts = 0  # since the kind changed last
        self._in_vain = 0  # times in a row that a text was not easy after all

    def begin(self, tokens: float) -> bool:
        """An answer begins.

        Args:
            tokens: What a step that drafts is expected to make by now.

        Returns:
            Whether something else is known now: what was before the easy answer that is over.
        """
        if not self._ordinary and 0.0 < MORE * self._tokens <= tokens:
            self._ordinary = self._at_beginning
        if not self._ordinary:
            self._in_a_row = 0
            return False
        self._easy = save_all(self._learnt)
        self._in_a_row += 1
        if self._in_a_row >= ORDINARY_AFTER:
            self._ordinary, self._easy = [], []
        return self._in_a_row < EXPECTED_AFTER and self._take_ordinary()

    def begun(self, tokens: float) -> None:
        """It is decided what the answer begins with: steps of so many tokens; 0 without drafts."""
        self._evidence, self._drafts = 0.0, 0
        self._in_vain = max(0, self._in_vain - 1)
        self._tokens, self._at_beginning = tokens, save_all(self._learnt)

    def take_draft(
        self, accepted: float, verified: int, length: int, forecast: float | None
    ) -> bool:
        """A draft was verified, or as much of it as was worth it.

        Args:
            accepted: Tokens of it that were accepted.
            verified: Those that could have been.
            length: Those that it had.
            forecast: Those of them that were expected to be accepted; None where that is not known.

        Returns:
            Whether something else is known now, since the text is of the other kind.
        """
        if not self._easy or not verified:
            return False
        easy = bool(self._ordinary)
        self._drafts += 1
        if forecast is not None:
            self._chances[easy] = depth_chance(length, forecast)
        other, own = self._chances[not easy], self._chances[easy]
        self._evidence = max(0.0, self._evidence + told(accepted, verified, own, other))
        if easy:
            wanted = EVIDENCE if self._drafts <= FEW_DRAFTS else EVIDENCE_LATER
            return self._evidence >= wanted and self.go_back()
        wanted = EVIDENCE * 2**self._in_vain
        return self._evidence >= wanted and self._take_easy()

    def _take_easy(self) -> bool:
        self._ordinary = self._at_beginning  # since then it was easy
        self._restore(self._easy)
        return True

    def go_back(self) -> bool:
        """Know again what was known before the text became easy; False where it did not."""
        if not self._ordinary:
            return False
        vain = self._drafts <= FEW_DRAFTS
        self._in_vain = min(DOUBLINGS, self._in_vain + 1) if vain else 0
        self._in_a_row = 0
        return self._take_ordinary()

    def _take_ordinary(self) -> bool:
        self._restore(self._ordinary)
        self._at_beginning, self._ordinary = self._ordinary, []
        return True

    def _restore(self, saved: list[Any]) -> None:
        restore_all(self._learnt, saved)
        self._evidence, self._drafts = 0.0, 0
