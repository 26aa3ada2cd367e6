from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_redrafter.drafting.combined import combine
from mlx_redrafter.drafting.grafting import graft, merge
from mlx_redrafter.tree import DraftTree, HostTree, accept, accepted_leaf

ROOT = 9


@st.composite
def tries(draw: st.DrawFn, depth: int = 4, nodes: int = 8) -> HostTree:
    """Trees without equal siblings, parents first."""
    tokens, parents, depths = [ROOT], [-1], [0]
    for _ in range(draw(st.integers(0, nodes))):
        parent = draw(st.integers(0, len(tokens) - 1))
        taken = {tokens[n] for n in range(len(tokens)) if parents[n] == parent}
        free = [token for token in range(4) if token not in taken]
        if depths[parent] == depth or not free:
            continue
        tokens.append(draw(st.sampled_from(free)))
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return HostTree(tuple(tokens), tuple(parents), tuple(-float(d) for d in depths))


def path(tree: HostTree | DraftTree, node: int) -> tuple[int, ...]:
    tokens: list[int] = np.array(tree.tokens).tolist()
    parents: list[int] = np.array(tree.parents).tolist()
    line: list[int] = []
    while node >= 0:
        line.insert(0, tokens[node])
        node = parents[node]
    return tuple(line)


def paths(tree: HostTree | DraftTree) -> set[tuple[int, ...]]:
    return {path(tree, node) for node in range(len(np.array(tree.tokens)))}


def on_device(tree: HostTree) -> DraftTree:
    return DraftTree.from_parents(tree.tokens, tree.parents, tree.log_probs)


def shuffled(tree: HostTree, seed: int) -> tuple[HostTree, list[int]]:
    """The same tree with its nodes in another order, the root first."""
    order = [0, *(1 + np.random.default_rng(seed).permutation(len(tree.tokens) - 1)).tolist()]
    place = {node: index for index, node in enumerate(order)} | {-1: -1}
    return HostTree(
        tuple(tree.tokens[n] for n in order),
        tuple(place[tree.parents[n]] for n in order),
        tuple(tree.log_probs[n] for n in order),
    ), order


@given(tries(), tries(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_merged_trees_have_the_paths_of_both_once(
    guessed: HostTree, copied: HostTree, seed: int
) -> None:
    guessed, _ = shuffled(guessed, seed)
    merged = merge(guessed, copied)
    whole = merged.pick(range(len(merged)), [0.0] * len(merged))
    assert paths(whole) == paths(guessed) | paths(copied)
    assert len(paths(whole)) == len(merged)
    for node in range(len(merged)):
        assert merged.parents[node] < node
        for tree, index in ((guessed, merged.guesses[node]), (copied, merged.copies[node])):
            held = path(whole, node) in paths(tree)
            assert held == (index >= 0)
            assert not held or path(tree, index) == path(whole, node)


def test_a_pick_renumbers_parents() -> None:
    merged = merge(
        HostTree((9, 1, 2), (-1, 0, 1), (0.0, 0.0, 0.0)), HostTree((9, 3), (-1, 0), (0, 0))
    )
    assert merged.pick([0, 3, 1], [0.0, -1.0, -2.0, -3.0]) == HostTree(
        (9, 3, 1), (-1, 0, 0), (0.0, -3.0, -1.0)
    )


@given(tries(), tries(depth=6))
@settings(max_examples=150, deadline=None)
def test_a_graft_on_the_device_is_the_tree_of_both(guessed: HostTree, copied: HostTree) -> None:
    tree = graft(on_device(guessed), copied)
    n, m = len(guessed.tokens), len(copied.tokens) - 1
    assert len(tree) == n + m
    assert paths(tree) == paths(guessed) | paths(copied)
    assert tree.tokens.tolist() == [*guessed.tokens, *copied.tokens[1:]]
    parents: list[int] = tree.parents.tolist()
    depths: list[int] = tree.depths.tolist()
    ancestors = np.array(tree.ancestors)
    assert tree.max_depth >= max(depths)
    for node in range(n + m):
        line, at = {node}, node
        while (at := parents[at]) >= 0:
            line.add(at)
        assert set(np.flatnonzero(ancestors[node])) == line
        assert depths[node] == len(line) - 1
    assert tree.path_tokens().shape == (n + m, tree.max_depth + 1)
    # Nothing follows a double.
    first: dict[tuple[int, ...], int] = {}
    for node in range(n + m):
        held = first.setdefault(path(tree, node), node)
        assert held == node or node not in parents


def walk(allowed: set[tuple[int, ...]], text: Sequence[int]) -> int:
    """How many tokens of a text are drafted."""
    return next(d for d in range(len(text), -1, -1) if (ROOT, *text[:d]) in allowed)


@given(tries(), tries(depth=6), st.lists(st.integers(0, 3), min_size=8, max_size=8))
@settings(max_examples=150, deadline=None)
def test_what_either_tree_holds_of_a_text_is_accepted(
    guessed: HostTree, copied: HostTree, text: list[int]
) -> None:
    tree = graft(on_device(guessed), copied)
    choices = [text[depth] for depth in tree.depths.tolist()]
    accepted = accept(tree.tokens.tolist(), tree.parents.tolist(), choices)
    assert len(accepted) - 1 == walk(paths(guessed) | paths(copied), text)
    assert int(accepted_leaf(tree, mx.array(choices)).item()) == accepted[-1]


def test_nothing_grafted_is_the_same_tree() -> None:
    tree = on_device(HostTree((9, 1), (-1, 0), (0.0, -1.0)))
    assert graft(tree, HostTree((9,), (-1,), (0.0,))) is tree


@given(tries(), tries(), st.integers(0, 12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_likeliest_nodes_are_a_tree_with_its_favourite_path_first(
    guessed: HostTree, copied: HostTree, count: int, random: Random
) -> None:
    merged = merge(guessed, copied)
    chances = merged.chances(
        [random.random() for _ in guessed.tokens], [random.random() for _ in copied.tokens]
    )
    nodes = merged.likeliest(chances, count)
    assert len(nodes) == min(1 + count, len(merged)) == len(set(nodes))
    assert all(merged.parents[node] in nodes[:place] for place, node in enumerate(nodes) if place)
    left = [chances[node] for node in range(len(merged)) if node not in nodes]
    assert not left or max(left) <= min(chances[node] for node in nodes)
    tree = merged.pick(nodes, chances)
    line = [node for node in range(1, len(nodes)) if tree.parents[node] == node - 1]
    at = 0
    while children := [node for node in range(1, len(nodes)) if tree.parents[node] == at]:
        best = max(children, key=lambda node: tree.log_probs[node])
        assert tree.log_probs[best] == tree.log_probs[at + 1]
        assert at + 1 in line
        at += 1


@given(tries(), tries(), st.sampled_from([(True, True), (True, False), (False, True)]))
@settings(max_examples=100, deadline=None)
def test_it_is_known_where_the_nodes_of_a_combined_tree_came_to_stand(
    one: HostTree, other: HostTree, known: tuple[bool, bool]
) -> None:
    trees = [
        tree if told else replace(tree, known=None)
        for tree, told in zip(map(on_device, (one, other)), known, strict=True)
    ]
    both = combine(*trees)
    shared = paths(one) & paths(other) if all(known) else set()
    for node in range(1, len(one.tokens)):
        places = both.places([node])
        if path(one, node) in shared:
            assert not places, "the other tree has it, too"
        else:
            (place,) = places
            assert path(both.tree, place) == path(one, node)
    assert len(both.places(range(1, len(one.tokens)))) == len(paths(one) - shared - {(ROOT,)})


def test_equal_siblings_of_a_known_tree_become_one() -> None:
    """A caller's source may propose them; the first is taken."""
    first = on_device(HostTree((ROOT, 1, 1, 2, 3), (-1, 0, 0, 2, 1), (0.0,) * 5))
    second = on_device(HostTree((ROOT, 3), (-1, 0), (0.0,) * 2))
    both = combine(first, second)
    assert paths(both.tree) == paths(first) | paths(second)
    assert len(both.tree) == len(paths(both.tree))
    assert [path(both.tree, place or 0) for place in both.alone] == [
        path(first, node) for node in range(1, len(first))
    ]
