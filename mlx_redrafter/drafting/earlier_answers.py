"""Answers that a model gave before: what it says again from text to text.

A model begins its answers alike, fills the same forms and has phrases of its own: a text repeats
them long before it repeats itself. So answers that have ended are kept, one after another, and the
end of a text is looked up in them as it is in the text itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

from .suffix import CAPACITY, Continuation, Match, SuffixAutomaton

# Stands between two answers; no text holds it, and no continuation goes on behind it.
BETWEEN = -2
# Tokens of a text's end that are looked up where its place is not known.
LOOKED_UP = 32


class EarlierAnswers:
    """The answers of texts that have ended; several threads may use them at once.

    Args:
        capacity: Tokens that are kept at most, see ``SuffixAutomaton``. In 1,500 answers of
            SmolLM2-135M-Instruct to its own questions 4,096, 16,384 and 65,536 made 1.58, 1.64 and
            1.71 tokens a step, and none 1.50.
    """

    def __init__(self, capacity: int = CAPACITY):
        self._capacity = capacity
        self._automaton = SuffixAutomaton(capacity)
        self._lock = Lock()

    def __len__(self) -> int:
        """Tokens that are kept, with one between two answers."""
        return len(self._automaton.tokens)

    def add(self, answer: Iterable[int]) -> None:
        """Keep an answer that has ended."""
        with self._lock:
            self._automaton.extend(answer)
            self._automaton.append(BETWEEN)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._automaton = SuffixAutomaton(self._capacity)

    def place_of(self, text: Sequence[int]) -> PlaceAmongAnswers:
        """The place of a text, which may go on, among them."""
        return PlaceAmongAnswers(self, text)


class PlaceAmongAnswers:
    """The longest end of one text that an earlier answer holds, as the text goes on.

    Args:
        answers: Others may be added to them, and old ones given up.
        text: The tokens so far.
    """

    def __init__(self, answers: EarlierAnswers, text: Sequence[int]):
        self._answers = answers
        self._last = list(text[-LOOKED_UP:])
        self._match = Match()
        self._found_in: tuple[SuffixAutomaton, int] | None = None

    def accepted(self, tokens: Sequence[int]) -> None:
        """Hear the tokens by which the text has gone on."""
        self._last = [*self._last, *tokens][-LOOKED_UP:]
        with self._answers._lock:
            automaton = self._answers._automaton
            if self._found_in == (automaton, len(automaton)):
                self._follow(automaton, tokens)

    def continuations(
        self, count: int, depth: int, *, longer_than: int = 0
    ) -> tuple[int, list[Continuation]]:
        """The length of the match, and what followed it.

        Args:
            count: Continuations at most.
            depth: Tokens of each, at most.
            longer_than: Tokens; what followed a match no longer than that is not looked up.
        """
        with self._answers._lock:
            automaton = self._answers._automaton
            if self._found_in != (automaton, len(automaton)):  # an answer more may hold more
                self._match, self._found_in = Match(), (automaton, len(automaton))
                self._follow(automaton, self._last)
            if self._match.length <= longer_than:
                return self._match.length, []
            found = automaton.continuations(count + 1, depth, self._match)
        whole = (Continuation(_of_one_answer(one.tokens), one.occurrences) for one in found)
        return self._match.length, [one for one in whole if one.tokens][:count]

    def _follow(self, automaton: SuffixAutomaton, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._match = automaton.follow(self._match, token)


def _of_one_answer(tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tokens[: tokens.index(BETWEEN)] if BETWEEN in tokens else tokens
