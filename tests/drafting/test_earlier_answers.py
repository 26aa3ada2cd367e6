"""Copies from answers that were given before: the longest match, whoever adds and gives up what."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_redrafter.drafting.copies import TextCopies
from mlx_redrafter.drafting.copy_acceptance import EARLIER, ONCE, CopyAcceptance, place
from mlx_redrafter.drafting.earlier_answers import LOOKED_UP, EarlierAnswers
from mlx_redrafter.drafting.suffix import SuffixAutomaton

Texts = list[list[int]]
tokens = st.integers(0, 3)
texts = st.lists(st.lists(tokens, min_size=1, max_size=30), max_size=6)


def slow(answers: Sequence[Sequence[int]], text: Sequence[int]) -> tuple[int, dict[int, int]]:
    """The longest end of a text that stands in an answer, and how often each token followed it."""
    for length in range(min(len(text), 60), 0, -1):
        end = list(text[-length:])
        places = [
            (answer, at + length)
            for answer in answers
            for at in range(len(answer) - length + 1)
            if list(answer[at : at + length]) == end
        ]
        if places:
            follow: dict[int, int] = {}
            for answer, at in places:
                if at < len(answer):
                    follow[answer[at]] = follow.get(answer[at], 0) + 1
            return length, follow
    return 0, {}


@settings(max_examples=200, deadline=None)
@given(answers=texts, text=st.lists(tokens, min_size=1, max_size=LOOKED_UP))
def test_the_match_is_the_longest_and_its_continuations_the_most_frequent(
    answers: Texts, text: list[int]
) -> None:
    kept = EarlierAnswers()
    for answer in answers:
        kept.add(answer)
    length, found = kept.place_of(text).continuations(9, 4)
    wanted, follow = slow(answers, text)
    assert length == wanted
    assert {one.tokens[0]: one.occurrences for one in found} == follow
    assert [one.occurrences for one in found] == sorted(follow.values(), reverse=True)
    for one in found:
        end = [*text[len(text) - length :], *one.tokens]
        starts = [answer[at : at + len(end)] for answer in answers for at in range(len(answer))]
        assert end in starts


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.lists(tokens, min_size=1, max_size=5),
            st.tuples(st.lists(tokens, min_size=1, max_size=12)),
            st.none(),
        ),
        max_size=20,
    )
)
def test_a_place_is_the_same_step_by_step_whatever_is_added_meanwhile(
    steps: list[list[int] | tuple[list[int]] | None],
) -> None:
    """A list goes on with the text, a tuple adds an answer, and None forgets all of them."""
    kept, answers, text = EarlierAnswers(), [], [0]
    place = kept.place_of(text)
    for step in steps:
        if step is None:
            kept.clear()
            answers.clear()
        elif isinstance(step, tuple):
            kept.add(step[0])
            answers.append(step[0])
        else:
            text += step
            place.accepted(step)
        length, found = place.continuations(9, 3)
        wanted, follow = slow(answers, text)
        if wanted <= LOOKED_UP:
            assert length == wanted
            assert {one.tokens[0]: one.occurrences for one in found} == follow


def test_what_is_given_up_is_not_copied_and_the_rest_is_found_again() -> None:
    draw = random.Random(0)
    kept = EarlierAnswers(capacity=40)
    old, recent = ([draw.randrange(50) for _ in range(18)] for _ in range(2))
    kept.add(old)
    place = kept.place_of(old[:5])
    assert place.continuations(1, 3)[1][0].tokens == tuple(old[5:8])
    kept.add(recent)
    kept.add([60] * 5)  # more than there is room for
    assert len(kept) <= 40
    assert place.continuations(1, 3)[0] < 5
    place.accepted(recent[6:10])
    length, found = place.continuations(1, 3)
    assert length >= 4
    assert found[0].tokens == tuple(recent[10:13])


def test_the_longer_match_is_copied_and_the_texts_own_where_they_are_alike() -> None:
    kept = EarlierAnswers()
    kept.add([1, 2, 3, 4, 5, 6])
    source = TextCopies(SuffixAutomaton(), answers=kept)
    source.follow([9, 3, 7, 8, 1, 2, 3])
    found = source.propose()
    assert found is not None
    assert (found.match_length, found.earlier) == (3, True)
    assert found.continuations[0].tokens == (4, 5, 6)
    source.follow([1, 2, 3, 7, 8, 1, 2, 3])
    found = source.propose()
    assert found is not None
    assert (found.match_length, found.earlier) == (3, False)
    assert found.continuations[0].tokens[:2] == (7, 8)


def test_a_text_joins_when_it_has_ended() -> None:
    kept = EarlierAnswers()
    first, second = TextCopies(answers=kept), TextCopies(answers=kept)
    first.follow([1, 2])
    second.follow([3, 4])
    first.accepted([5, 6, 7])
    assert second.propose() is None
    first.end([5, 6, 7])
    second.accepted([5])
    found = second.propose()
    assert found is not None
    assert found.continuations[0].tokens == (6, 7)
    apart = TextCopies()
    apart.follow([4, 5])
    assert apart.propose() is None


@pytest.mark.parametrize("length", [1, 4, 30])
def test_they_are_believed_apart(length: int) -> None:
    kept = EarlierAnswers()
    kept.add(range(100))
    source = TextCopies(answers=kept)
    source.follow(range(length))
    found = source.propose()
    assert found is not None
    row, column = place(found, 0, 0)
    assert row == EARLIER + ONCE
    acceptance = CopyAcceptance()
    before = acceptance.likely(found)[1][1]
    own = TextCopies()
    own.follow([*range(length + 1), 200, *range(length)])
    alike = own.propose()
    assert alike is not None
    assert place(alike, 0, 0) == (ONCE, column)
    own_before = acceptance.likely(alike)[1][1]
    for _ in range(20):
        acceptance.observe(found, [999])
    assert acceptance.likely(found)[1][1] < before
    assert acceptance.likely(alike)[1][1] == own_before
