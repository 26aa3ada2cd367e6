"""Drafts that the text itself proposes, or an answer before it: what followed the places at which
its end has stood.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..tree import HostTree
from .earlier_answers import EarlierAnswers, PlaceAmongAnswers
from .suffix import Continuation, SuffixAutomaton

# Tokens of the first continuation; after a long match a whole tile of a forward may be copied.
MAX_CHAIN = 32
# Further continuations are right seldom, and then rarely for long.
MAX_CONTINUATIONS = 3
FURTHER_CHAIN = 4


@dataclass(frozen=True)
class Copies:
    """Continuations of a text's end, found at earlier places of it or in answers before it.

    Attributes:
        root: The text's last token.
        match_length: How many of the text's last tokens, the root included, stood there too.
        continuations: What followed, the most frequent first; each begins with another token.
        shared: Whether the match was followed by different tokens.
        earlier: Whether an earlier answer holds it, and the text itself none as long.
    """

    root: int
    match_length: int
    continuations: tuple[Continuation, ...]
    shared: bool = False
    earlier: bool = False

    @cached_property
    def tree(self) -> HostTree:
        """The continuations as a tree, one after the other; its scores say nothing."""
        tokens, parents = [self.root], [-1]
        for continuation in self.continuations:
            first = len(tokens)
            tokens += continuation.tokens
            parents += [0, *range(first, len(tokens) - 1)]
        return HostTree(tuple(tokens), tuple(parents), (0.0,) * len(tokens))


class TextCopies:
    """Proposes copies for one text as it grows; nothing here touches the device.

    Args:
        automaton: Holds the text; kept for the next turn of a conversation.
        ends: Tokens that end the text, after which nothing is copied. A chat's prompt has one
            after each turn, and a name in the question is often followed by it.
        answers: Of earlier texts, to be copied from as well, and joined by this one's; None: none.
    """

    def __init__(
        self,
        automaton: SuffixAutomaton | None = None,
        ends: frozenset[int] = frozenset(),
        answers: EarlierAnswers | None = None,
    ):
        self.automaton = automaton or SuffixAutomaton()
        self._ends = ends
        self._answers = answers
        self._place: PlaceAmongAnswers | None = None

    def follow(self, text: Sequence[int]) -> None:
        """Make ``text`` the automaton's, keeping what the two share from the beginning on."""
        automaton = self.automaton
        automaton.rewind(_shared(automaton, text))
        automaton.extend(text[len(automaton) :])
        self._place = None if self._answers is None else self._answers.place_of(text)

    def accepted(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that a step added to the text."""
        self.automaton.extend(tokens)
        if self._place is not None:
            self._place.accepted(tokens)

    def end(self, answer: Sequence[int]) -> None:
        """The text has ended with this answer: later ones may copy from it."""
        if self._answers is not None:
            self._answers.add(answer)

    def propose(self, max_depth: int = MAX_CHAIN, *, least_earlier: int = 1) -> Copies | None:
        """Copies for the next step; None where the text's end has no earlier place that
        was gone on from.

        Args:
            max_depth: Tokens of a continuation at most.
            least_earlier: Length of a match in an earlier answer at least.
        """
        if max_depth < 1:
            return None
        chain = min(max_depth, MAX_CHAIN)
        length, found, earlier = self._found(chain, least_earlier)
        # Where the text ends at once its end is the next choice, and nothing is left to verify.
        going_on = [one for one in found if one.tokens[0] not in self._ends]
        if not going_on:
            return None
        first, *others = going_on
        continuations = (
            self._cut(first, chain),
            *(self._cut(one, FURTHER_CHAIN) for one in others),
        )
        root, shared = self.automaton.tokens[-1], len(found) > 1
        return Copies(root, length, continuations, shared, earlier)

    def _found(self, depth: int, least_earlier: int) -> tuple[int, list[Continuation], bool]:
        """The longest match, what followed it, and whether an earlier answer alone has it."""
        own = self.automaton.match_length
        if self._place is not None:
            length, found = self._place.continuations(
                MAX_CONTINUATIONS, depth, longer_than=max(own, least_earlier - 1)
            )
            if found:
                return length, found, True
        if not own:
            return 0, [], False
        return own, self.automaton.continuations(MAX_CONTINUATIONS, depth), False

    def _cut(self, continuation: Continuation, most: int) -> Continuation:
        """Its first ``most`` tokens, or as many as there are up to one that ends the text."""
        tokens = continuation.tokens[:most]
        ended = next((place for place, token in enumerate(tokens) if token in self._ends), most)
        return replace(continuation, tokens=tokens[: 1 + ended])


def _shared(automaton: SuffixAutomaton, text: Sequence[int]) -> int:
    """Length of the longest beginning of both; what the automaton gave up is taken for shared."""
    first = automaton.forgotten
    end = min(len(automaton), len(text))
    if first >= end:
        return 0
    known = np.frombuffer(array("i", automaton.tokens[: end - first]), dtype=np.int32)
    differ = np.flatnonzero(known != np.array(text[first:end], np.int32))
    return first + int(differ[0]) if len(differ) else end
