from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_redrafter.drafting.copies import FURTHER_CHAIN, MAX_CHAIN, Copies, TextCopies
from mlx_redrafter.drafting.copy_acceptance import LEAST_CHANCE, LENGTHS, PRIOR, CopyAcceptance
from mlx_redrafter.drafting.suffix import Continuation, SuffixAutomaton

TEXTS = st.lists(st.integers(0, 3), max_size=40)


def copies_of(text: list[int], **options: int) -> Copies | None:
    source = TextCopies()
    source.follow(text)
    return source.propose(**options)


def test_what_followed_the_match_is_proposed() -> None:
    found = copies_of([1, 2, 3, 4, 5, 9, 1, 2, 3], max_depth=2)
    assert found == Copies(3, 3, (Continuation((4, 5), 1),), shared=False)
    assert found.tree.tokens == (3, 4, 5)
    assert found.tree.parents == (-1, 0, 1)


def test_several_continuations_branch_at_the_root() -> None:
    found = copies_of([1, 2, 10, 1, 3, 11, 1, 2, 12, 1], max_depth=2)
    assert found is not None
    assert found.tree.tokens == (1, 2, 12, 3, 11)
    assert found.tree.parents == (-1, 0, 1, 0, 3)


def test_only_the_first_continuation_is_long() -> None:
    found = copies_of([1, 2, *range(10, 60), 1, 3, *range(60, 99), 1])
    assert found is not None
    assert [len(each.tokens) for each in found.continuations] == [MAX_CHAIN, FURTHER_CHAIN]


def test_nothing_is_copied_past_what_ends_the_text() -> None:
    source = TextCopies(ends=frozenset({9}))
    source.follow([1, 2, 3, 4, 9, 5, 6, 1, 2])
    found = source.propose()
    assert found is not None
    assert found.continuations[0].tokens == (3, 4, 9)
    source.accepted([3, 4])
    assert source.propose() is None  # the end itself is the next choice
    source.accepted([5, 4])
    found = source.propose()  # after a 4 there was an end, and a 5
    assert found is not None
    assert found.shared
    assert [one.tokens[:2] for one in found.continuations] == [(5, 4)]


@pytest.mark.parametrize("text", [[], [1], [1, 2, 3]])
def test_without_an_earlier_place_nothing_is_proposed(text: list[int]) -> None:
    assert copies_of(text) is None


def test_nothing_is_proposed_without_room() -> None:
    assert copies_of([1, 2, 1], max_depth=0) is None


@given(TEXTS, TEXTS, st.integers(2, 50))
@settings(max_examples=100, deadline=None)
def test_another_text_is_followed_as_if_it_were_the_first(
    first: list[int], second: list[int], capacity: int
) -> None:
    source = TextCopies(SuffixAutomaton(capacity))
    source.follow(first)
    source.follow(second)
    assert len(source.automaton) == len(second)
    kept = second[source.automaton.forgotten :]
    assert list(source.automaton.tokens) == kept
    if capacity == 50:
        assert source.propose() == copies_of(second)


def test_what_a_step_added_belongs_to_the_text() -> None:
    source = TextCopies()
    source.follow([1, 2, 3])
    source.accepted([1, 2])
    assert source.propose() == copies_of([1, 2, 3, 1, 2])


def chances_of(acceptance: CopyAcceptance, copies: Copies) -> list[float]:
    return acceptance.likely(copies)[1]


def test_chances_fall_with_depth_and_rise_with_the_match() -> None:
    acceptance = CopyAcceptance()
    short = Copies(0, 6, (Continuation(tuple(range(32)), 1),))
    long = Copies(0, 40, short.continuations)
    chances, more = chances_of(acceptance, short), chances_of(acceptance, long)
    assert len(chances) == len(more) == 33
    assert chances[0] == 1
    assert all(a > b for a, b in pairwise(chances))
    assert all(a < b for a, b in zip(chances[1:], more[1:], strict=True))


def test_what_is_hardly_ever_right_is_left_out() -> None:
    acceptance = CopyAcceptance()
    others = (Continuation((7,) * 32, 1), Continuation((8, 8), 1))
    copies = Copies(0, 1, others, shared=True)
    for _ in range(500):
        acceptance.observe(copies, [7])
    kept, chances = acceptance.likely(copies)
    assert len(kept.tree.tokens) == len(chances)
    assert [each.tokens[0] for each in kept.continuations] == [7]
    assert 1 < len(kept.continuations[0].tokens) < 32
    assert min(chances) >= LEAST_CHANCE
    for _ in range(500):
        acceptance.observe(copies, [6])
    assert acceptance.likely(copies) == (Copies(0, 1, (), shared=True), [1.0])


def test_chances_are_those_of_the_trees_nodes() -> None:
    found = copies_of([1, 2, 10, 1, 3, 11, 1, 2, 12, 1], max_depth=2)
    assert found is not None
    kept, chances = CopyAcceptance().likely(found)
    assert kept == found
    assert len(chances) == len(found.tree.tokens)
    assert (chances[1], chances[3]) == pytest.approx((PRIOR[0][0], PRIOR[3][0]))


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("length", [1, 7, 500])
def test_what_follows_is_learnt_for_matches_of_that_length(length: int, right: bool) -> None:
    acceptance = CopyAcceptance()
    copies = Copies(0, length, (Continuation((5, 6), 1),))
    other = Copies(0, 3, (Continuation((5, 6), 1),))
    before = chances_of(acceptance, other)[1]
    for _ in range(300):
        acceptance.observe(copies, [5] if right else [7])
    _, *learnt = chances_of(acceptance, copies)
    assert learnt[0] > 0.95 if right else learnt == []
    assert chances_of(acceptance, other)[1] == before


def test_behind_a_wrong_token_nothing_is_learnt() -> None:
    acceptance = CopyAcceptance()
    copies = Copies(0, 4, (Continuation((5, 6, 7), 1),))
    chances = chances_of(acceptance, copies)
    acceptance.observe(copies, [4, 6, 7])
    after = chances_of(acceptance, copies)
    assert after[1] < chances[1]
    assert after[2] / after[1] == pytest.approx(chances[2] / chances[1])


def test_several_same_places_are_believed_more_than_one() -> None:
    chance = {
        times: chances_of(CopyAcceptance(), Copies(0, 2, (Continuation((5,), times),)))[1]
        for times in (1, 2)
    }
    assert chance[2] > chance[1]


def test_the_prior_has_a_column_for_every_length() -> None:
    assert {len(row) for row in PRIOR} == {len(LENGTHS) + 1}
    assert all(0 < chance < 1 for row in PRIOR for chance in row)
