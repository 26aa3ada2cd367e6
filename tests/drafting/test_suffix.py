from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_redrafter.drafting.suffix import Continuation, SuffixAutomaton

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def slow_match_length(text: list[int]) -> int:
    """By trying all lengths at all earlier places."""
    for length in range(len(text) - 1, 0, -1):
        end = text[-length:]
        if any(text[at : at + length] == end for at in range(len(text) - length)):
            return length
    return 0


def slow_continuations(text: list[int], count: int, depth: int) -> list[Continuation]:
    length = slow_match_length(text)
    if not length:
        return []
    places: dict[int, list[int]] = {}
    for at in range(len(text) - length):
        if text[at : at + length] == text[-length:]:
            places.setdefault(text[at + length], []).append(at + length)
    ranked = sorted(places.values(), key=lambda found: (len(found), found[-1]), reverse=True)
    result = []
    for found in ranked[:count]:
        line = list(text)
        while len(line) < found[-1] + depth:
            line.append(line[len(line) - (len(text) - found[-1])])
        place = found[-1]
        result.append(Continuation(tuple(line[place : place + depth]), len(found)))
    return result


def assert_same_as_slow(automaton: SuffixAutomaton, text: list[int]) -> None:
    assert len(automaton) == len(text)
    assert automaton.match_length == slow_match_length(text)
    for count, depth in ((1, 1), (2, 5), (9, 9)):
        assert automaton.continuations(count, depth) == slow_continuations(text, count, depth)


def snapshot(automaton: SuffixAutomaton) -> tuple[object, ...]:
    """All that is known, transitions by state without their order."""
    moves = [sorted(automaton._transitions(state)) for state in range(len(automaton._links))]
    lists = (automaton._links, automaton._lengths, automaton._ends, automaton._counts)
    split = automaton._further, automaton._originals  # nothing of a state that is gone
    return moves, [values.tolist() for values in lists], automaton._tokens.tolist(), split


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_each_prefix_is_matched_as_by_a_slow_search(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end, token in enumerate(text, start=1):
        automaton.append(token)
        if end % 7 == 0 or end == len(text):
            assert_same_as_slow(automaton, text[:end])


@given(st.lists(st.integers(-4, 8), min_size=25, max_size=40))
@settings(max_examples=250, deadline=None)
def test_after_each_token_and_each_rewind_it_matches_as_a_slow_search(changes: list[int]) -> None:
    """Changes: one of three tokens to append, or, below zero, how many are taken back."""
    automaton, text = SuffixAutomaton(), list[int]()
    for change in changes:
        if change >= 0:
            automaton.append(change % 3)
            text.append(change % 3)
        else:
            text = text[:change]
            automaton.rewind(len(text))
        assert_same_as_slow(automaton, text)


@given(TEXTS, TEXTS, st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_rewound_it_is_what_it_was(first: list[int], second: list[int], length: int) -> None:
    length = min(length, len(first))
    automaton, wanted = SuffixAutomaton(), SuffixAutomaton()
    automaton.extend(first)
    automaton.rewind(length)
    wanted.extend(first[:length])
    assert snapshot(automaton) == snapshot(wanted)
    automaton.extend(second)
    assert_same_as_slow(automaton, first[:length] + second)


def test_rewound_further_than_can_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_redrafter.drafting.suffix.UNDO_TOKENS", 5)
    text = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1]
    automaton, wanted = SuffixAutomaton(), SuffixAutomaton()
    automaton.extend(text)
    automaton.rewind(4)
    wanted.extend(text[:4])
    assert snapshot(automaton) == snapshot(wanted)
    automaton.rewind(0)
    assert (len(automaton), automaton.match_length, automaton.continuations(3, 3)) == (0, 0, [])


def test_a_rewind_beyond_the_end_changes_nothing() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([1, 2, 1])
    automaton.rewind(7)
    assert len(automaton) == 3


def test_the_most_frequent_comes_first_then_the_most_recent() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([7, 1, 10, 7, 2, 11, 7, 1, 12, 7, 3, 13, 7, 2, 14, 7])
    found = automaton.continuations(9, 2)
    assert [(each.tokens, each.occurrences) for each in found] == [
        ((2, 14), 2),
        ((1, 12), 2),
        ((3, 13), 1),
    ]


def test_a_period_goes_on() -> None:
    automaton = SuffixAutomaton()
    automaton.extend([5, 1, 2, 3, 1, 2, 3, 1, 2])
    assert automaton.match_length == 5
    assert automaton.continuations(1, 8)[0].tokens == (3, 1, 2, 3, 1, 2, 3, 1)


def test_nothing_is_copied_where_nothing_repeats() -> None:
    automaton = SuffixAutomaton()
    automaton.extend(range(50))
    assert automaton.match_length == 0
    assert automaton.continuations(3, 3) == []


@given(TEXTS, st.integers(2, 12))
@settings(max_examples=100, deadline=None)
def test_beyond_its_capacity_old_tokens_are_given_up(text: list[int], capacity: int) -> None:
    automaton = SuffixAutomaton(capacity)
    automaton.extend(text)
    assert len(automaton) == len(text)
    kept = len(text) - automaton.forgotten
    assert min(len(text), capacity // 2) <= kept <= capacity
    recent = text[automaton.forgotten :]
    assert automaton.match_length == slow_match_length(recent)
    found = automaton.continuations(9, 4)
    assert [each.tokens for each in found] == [
        each.tokens for each in slow_continuations(recent, 9, 4)
    ]


def test_a_rewind_into_what_was_given_up_begins_anew() -> None:
    automaton = SuffixAutomaton(8)
    automaton.extend([1, 2, 3, 4] * 5)
    assert automaton.forgotten > 3
    automaton.rewind(3)
    assert (len(automaton), automaton.match_length) == (3, 0)
    automaton.extend([5, 6, 5])
    assert automaton.continuations(1, 2) == [Continuation((6, 5), 1)]


def words(count: int) -> list[int]:
    """Text in which frequent tokens are more frequent, with repeated passages."""
    rng = np.random.default_rng(0)
    text: list[int] = []
    while len(text) < count:
        if text and rng.random() < 0.1:
            at = int(rng.integers(0, len(text)))
            text += text[at : at + 40]
        text += np.minimum(rng.zipf(1.3, 20), 40_000).tolist()
    return text[:count]


def test_a_text_of_100000_tokens_takes_bounded_memory() -> None:
    text = words(100_000)
    tracemalloc.start()
    automaton = SuffixAutomaton(30_000)
    automaton.extend(text)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(automaton._links) <= 2 * 30_000
    assert used < 8e6
    assert peak < 12e6
    assert automaton.forgotten >= 70_000


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ([1] * 20_000, (1, 1, 1)),
        ([1, 2] * 10_000, (1, 2, 1)),
        ([1] * 9_999 + [2] + [1] * 9_999, (2, 1, 1)),
    ],
)
def test_the_work_is_linear_in_degenerate_texts(text: list[int], following: object) -> None:
    """Counted, not timed: states, and the suffixes that a token updates."""
    automaton = SuffixAutomaton()
    automaton.extend(text)
    assert len(automaton._links) <= 2 * len(text)
    assert max(map(len, automaton._undo)) <= 2 * 64
    assert automaton.continuations(1, 3)[0].tokens == following
    automaton.rewind(len(text) - 100)
    automaton.extend(text[-100:])
    assert automaton.continuations(1, 3)[0].tokens == following
