"""Drafts that the text itself proposes: what followed the earlier places at which its end stood."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..tree import HostTree
from .suffix import Continuation, SuffixAutomaton

# Tokens of the first continuation; after a long match a whole tile of a forward may be copied.
MAX_CHAIN = 32
# Further continuations are right seldom, and then rarely for long.
MAX_CONTINUATIONS = 3
FURTHER_CHAIN = 4


@dataclass(frozen=True)
class Copies:
    """Continuations of a text's end, found at earlier places of it.

    Attributes:
        root: The text's last token.
        match_length: How many of the text's last tokens, the root included, stood there too.
        continuations: What followed, the most frequent first; each begins with another token.
        shared: Whether the match was followed by different tokens.
    """

    root: int
    match_length: int
    continuations: tuple[Continuation, ...]
    shared: bool = False

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
    """

    def __init__(
        self, automaton: SuffixAutomaton | None = None, ends: frozenset[int] = frozenset()
    ):
        self.automaton = automaton or SuffixAutomaton()
        self._ends = ends

    def follow(self, text: Sequence[int]) -> None:
        """Make ``text`` the automaton's, keeping what the two share from the beginning on."""
        automaton = self.automaton
        automaton.rewind(_shared(automaton, text))
        automaton.extend(text[len(automaton) :])

    def accepted(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens that a step added to the text."""
        self.automaton.extend(tokens)

    def propose(self, max_depth: int = MAX_CHAIN) -> Copies | None:
        """Copies for the next step; None where the text's end has no earlier place that
        was gone on from.

        Args:
            max_depth: Tokens of a continuation at most.
        """
        automaton = self.automaton
        if max_depth < 1 or not automaton.match_length:
            return None
        chain = min(max_depth, MAX_CHAIN)
        found = automaton.continuations(MAX_CONTINUATIONS, chain)
        # Where the text ends at once its end is the next choice, and nothing is left to verify.
        going_on = [one for one in found if one.tokens[0] not in self._ends]
        if not going_on:
            return None
        first, *others = going_on
        continuations = (
            self._cut(first, chain),
            *(self._cut(one, FURTHER_CHAIN) for one in others),
        )
        shared = len(found) > 1
        return Copies(automaton.tokens[-1], automaton.match_length, continuations, shared)

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
        return end if first == 0 else 0
    known = np.frombuffer(array("i", automaton.tokens[: end - first]), dtype=np.int32)
    differ = np.flatnonzero(known != np.array(text[first:end], np.int32))
    return first + int(differ[0]) if len(differ) else end
