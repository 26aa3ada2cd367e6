"""A suffix automaton over a text that grows token by token: where its end has stood before.

A state stands for all strings that end at the same places of the text; its suffix link leads to the
longest of their suffixes that ends at further places (Blumer et al., "The smallest automaton
recognizing the subwords of a text", 1985). The longest end of the text that has an earlier place is
therefore the link of the state that stands for the whole text, and what followed it are that
state's transitions. A token costs constant time, amortised, and at most two states and three
transitions. The latest token can be taken back as quickly: all that it changed hangs on the states
that it made.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Tokens that are remembered at most. When there are more the older half is given up, so at least
# half as many are always known. An automaton of so many takes 10 to 15 MB.
CAPACITY = 65_536
# Suffixes of the text's end whose latest place and number of places are kept up to date with each
# token, the longest first. Ordinary text has 5 to 15 that occurred before; only a token repeated
# hundreds of times has more, and then what is known of the shortest of them is out of date.
UPDATED_SUFFIXES = 64
# Tokens that can be taken back one by one; further back the automaton is built again.
UNDO_TOKENS = 2_048

_NONE = -1


@dataclass(frozen=True)
class Continuation:
    """What followed an earlier place at which the text's end had stood.

    Attributes:
        tokens: The tokens after it. Where they reach the text's end they continue from their own
            beginning: of a period the next ones.
        occurrences: How often the match was followed by the first of them.
    """

    tokens: tuple[int, ...]
    occurrences: int


class Match(NamedTuple):
    """The longest end of another text that stands somewhere in the automaton's.

    Attributes:
        state: The state of it and of all strings that end at the same places.
        length: Its tokens; 0 for none.
    """

    state: int = 0
    length: int = 0


class SuffixAutomaton:
    """A text, and for its end the longest match with an earlier place.

    Args:
        capacity: Tokens remembered at most, see ``CAPACITY``; at least 2.
    """

    def __init__(self, capacity: int = CAPACITY):
        self._capacity = max(2, capacity)
        self._forgotten = 0  # tokens of the text before the first one remembered
        self._start()

    def _start(self) -> None:
        """The automaton of no text."""
        self._tokens = array("i")
        self._prefixes = array("i", [0])  # the state of the first 0, 1, ... tokens
        self._links = array("i", [_NONE])
        self._lengths = array("i", [0])  # of the longest string of each state
        self._ends = array("i", [0])  # tokens up to where its strings end last
        self._counts = array("i", [0])  # places at which they end
        # Most states have one transition: it stands in two arrays, further ones in dictionaries.
        self._labels = array("i", [_NONE])
        self._targets = array("i", [_NONE])
        self._further: dict[int, dict[int, int]] = {}
        self._originals: dict[int, int] = {}  # which state a state was split from
        self._undo: deque[list[int]] = deque(maxlen=UNDO_TOKENS)

    def __len__(self) -> int:
        """Tokens of the text, those that were given up included."""
        return self._forgotten + len(self._tokens)

    @property
    def forgotten(self) -> int:
        """Tokens at the text's beginning that were given up."""
        return self._forgotten

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens that are remembered."""
        return self._tokens

    @property
    def match_length(self) -> int:
        """Length of the longest end of the text that also ends at an earlier place; 0 if none."""
        link = self._links[self._prefixes[-1]]
        return self._lengths[link] if link > 0 else 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Append a token to the text."""
        if len(self._tokens) >= self._capacity:
            self._give_up_old()
        state, before = self._new_state(self._lengths[self._prefixes[-1]] + 1), self._prefixes[-1]
        self._tokens.append(token)
        self._prefixes.append(state)
        while before != _NONE and (target := self._next(before, token)) == _NONE:
            self._set(before, token, state)
            before = self._links[before]
        if before == _NONE:
            self._links[state] = 0
        elif self._lengths[target] == self._lengths[before] + 1:
            self._links[state] = target
        else:
            self._links[state] = self._split(target, before, token)
        self._update_suffixes(state)

    def _new_state(self, length: int) -> int:
        self._links.append(0)
        self._lengths.append(length)
        self._ends.append(0)
        self._counts.append(0)
        self._labels.append(_NONE)
        self._targets.append(_NONE)
        return len(self._links) - 1

    def _split(self, state: int, before: int, token: int) -> int:
        """Part the strings of a state that end at a further place now from the longer ones."""
        shorter = self._new_state(self._lengths[before] + 1)
        self._links[shorter] = self._links[state]
        self._ends[shorter], self._counts[shorter] = self._ends[state], self._counts[state]
        self._labels[shorter], self._targets[shorter] = self._labels[state], self._targets[state]
        if state in self._further:
            self._further[shorter] = dict(self._further[state])
        self._links[state] = shorter
        self._originals[shorter] = state
        self._redirect(before, token, state, shorter)
        return shorter

    def _redirect(self, state: int, token: int, old: int, new: int) -> None:
        """Lead a state's and its suffixes' transitions to another target."""
        while state != _NONE and self._next(state, token) == old:
            self._set(state, token, new)
            state = self._links[state]

    def _update_suffixes(self, state: int) -> None:
        """Note that the strings of a state and its suffixes end at the end of the text."""
        ends, counts, links, end = self._ends, self._counts, self._links, len(self._tokens)
        changed: list[int] = []
        for _ in range(UPDATED_SUFFIXES):
            if state <= 0:
                break
            changed += (state, ends[state])
            ends[state] = end
            counts[state] += 1
            state = links[state]
        self._undo.append(changed)

    def _next(self, state: int, token: int) -> int:
        if self._labels[state] == token:
            return self._targets[state]
        further = self._further.get(state)
        return _NONE if further is None else further.get(token, _NONE)

    def _set(self, state: int, token: int, target: int) -> None:
        if self._labels[state] in (_NONE, token):
            self._labels[state], self._targets[state] = token, target
        else:
            self._further.setdefault(state, {})[token] = target

    def _remove(self, state: int, token: int) -> None:
        if self._labels[state] != token:
            further = self._further[state]
            del further[token]
            if not further:
                del self._further[state]
        elif state in self._further:
            self._labels[state], self._targets[state] = self._further[state].popitem()
            if not self._further[state]:
                del self._further[state]
        else:
            self._labels[state] = self._targets[state] = _NONE

    def _transitions(self, state: int) -> list[tuple[int, int]]:
        if self._labels[state] == _NONE:
            return []
        first = (self._labels[state], self._targets[state])
        return [first, *self._further.get(state, {}).items()]

    def _give_up_old(self) -> None:
        kept = self._tokens[len(self._tokens) - self._capacity // 2 :]
        forgotten = len(self) - len(kept)
        self._start()
        self._forgotten = forgotten
        self.extend(kept)

    def rewind(self, length: int) -> None:
        """Forget the tokens at and after position ``length``.

        Of what was given up nothing comes back: after it the text begins again, with no earlier
        places.
        """
        surplus = len(self) - length
        if surplus <= 0:
            return
        if surplus <= len(self._undo):
            for _ in range(surplus):
                self._take_back()
            return
        kept = self._tokens[: max(0, length - self._forgotten)]
        self._start()
        self._forgotten = length - len(kept)
        self.extend(kept)

    def _take_back(self) -> None:
        """Undo the latest :meth:`append`."""
        changed = self._undo.pop()
        for index in range(0, len(changed), 2):
            self._ends[changed[index]] = changed[index + 1]
            self._counts[changed[index]] -= 1
        token, state = self._tokens.pop(), self._prefixes.pop()
        before = self._prefixes[-1]
        while before != _NONE and self._next(before, token) == state:
            self._remove(before, token)
            before = self._links[before]
        if len(self._links) == state + 2:
            shorter = state + 1
            original = self._originals.pop(shorter)
            self._redirect(before, token, shorter, original)
            self._links[original] = self._links[shorter]
            self._drop_state()
        self._drop_state()

    def _drop_state(self) -> None:
        state = len(self._links) - 1
        self._further.pop(state, None)
        for values in (
            self._links, self._lengths, self._ends, self._counts, self._labels, self._targets,
        ):  # fmt: skip
            values.pop()

    def follow(self, match: Match, token: int) -> Match:
        """The match of another text when a token is appended to that.

        Args:
            match: Before it, since when the automaton has not changed.
            token: The token.
        """
        state, length = match
        while (target := self._next(state, token)) == _NONE:
            if state == 0:
                return Match()
            state = self._links[state]
            length = self._lengths[state]
        return Match(target, length + 1)

    def continuations(
        self, count: int, depth: int, match: Match | None = None
    ) -> list[Continuation]:
        """What followed the longest match, from each distinct next token's latest place on.

        Args:
            count: Continuations at most.
            depth: Tokens of each.
            match: Of another text; None: of this text's own end.

        Returns:
            The most frequent first, of equally frequent ones the most recent; none without a match.
        """
        own = self._links[self._prefixes[-1]]
        state = own if match is None else match.state
        if state <= 0:
            return []
        found = [(self._counts[s], self._ends[s]) for _, s in self._transitions(state)]
        found.sort(reverse=True)
        return [
            Continuation(self._following(end - 1, depth), times) for times, end in found[:count]
        ]

    def _following(self, place: int, depth: int) -> tuple[int, ...]:
        """The tokens from a place on, periodically where they reach the end."""
        tokens = self._tokens[place : place + depth].tolist()
        while len(tokens) < depth:
            tokens += tokens[: depth - len(tokens)]
        return tuple(tokens)
