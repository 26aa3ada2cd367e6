from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from mlx_redrafter.tree import DraftTree, HostTree, accept, accepted_leaf

#        0
#      / | \
#     1  2  5
#     |  |\
#     3  4 6
TOKENS = [5, 7, 9, 8, 7, 6, 1]
PARENTS = [-1, 0, 0, 1, 2, 0, 2]


@pytest.mark.parametrize(
    ("choices", "path"),
    [
        ([7, 8, 0, 0, 0, 0, 0], [0, 1, 3]),
        ([9, 0, 7, 0, 3, 0, 0], [0, 2, 4]),
        ([9, 0, 1, 0, 0, 0, 9], [0, 2, 6]),
        ([6, 0, 0, 0, 0, 0, 0], [0, 5]),
        # The choice is drafted elsewhere in the tree, but not here.
        ([8, 7, 7, 7, 7, 7, 7], [0]),
        ([7, 9, 7, 7, 7, 7, 7], [0, 1]),
        ([2, 2, 2, 2, 2, 2, 2], [0]),
    ],
)
def test_accept_follows_the_choices(choices: list[int], path: list[int]) -> None:
    assert accept(TOKENS, PARENTS, choices) == path


def test_accept_of_a_lone_root() -> None:
    assert accept([5], [-1], [5]) == [0]


def test_a_root_is_no_candidate_of_its_own() -> None:
    assert accept([5, 5], [-1, 0], [5, 5]) == [0, 1]


def test_of_equal_siblings_the_first_is_taken() -> None:
    assert accept([1, 2, 2, 3], [-1, 0, 0, 2], [2, 3, 3, 3]) == [0, 1]


def test_children_may_stand_before_their_parents() -> None:
    assert accept([1, 3, 2], [-1, 2, 0], [2, 9, 3]) == [0, 2, 1]
    assert HostTree((1, 3, 2), (-1, 2, 0), (0.0, -2.0, -1.0)).depths == (0, 2, 1)


def test_host_depths() -> None:
    tree = HostTree(tuple(TOKENS), tuple(PARENTS), (0.0,) * 7)
    assert tree.depths == (0, 1, 1, 2, 2, 1, 2)


def test_host_depths_of_a_long_chain() -> None:
    n = 65
    tree = HostTree((0,) * n, tuple(range(-1, n - 1)), (0.0,) * n)
    assert tree.depths == tuple(range(n))


def test_from_parents() -> None:
    tree = DraftTree.from_parents(TOKENS, PARENTS, [0, -1, -2, -3, -4, -5, -6])
    assert len(tree) == 7
    assert tree.max_depth == 2
    assert tree.tokens.tolist() == TOKENS
    assert tree.parents.tolist() == PARENTS
    assert tree.depths.tolist() == [0, 1, 1, 2, 2, 1, 2]
    assert tree.log_probs.tolist() == [0, -1, -2, -3, -4, -5, -6]
    lines = [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 2, 4}, {0, 5}, {0, 2, 6}]
    assert [set(np.flatnonzero(row)) for row in np.array(tree.ancestors)] == lines
    assert {a.dtype for a in (tree.tokens, tree.parents, tree.depths)} == {mx.int32}


def test_log_probs_are_zero_if_not_given() -> None:
    assert DraftTree.from_parents([1, 2], [-1, 0]).log_probs.tolist() == [0, 0]


def test_from_parents_in_numpy_s_arrays() -> None:
    tree = DraftTree.from_parents(
        np.array(TOKENS), np.array(PARENTS, np.int64), -np.arange(7, dtype=np.float32)
    )
    assert tree.known == HostTree(tuple(TOKENS), tuple(PARENTS), tuple(-float(n) for n in range(7)))


@pytest.mark.parametrize("scores", [[], [0.0], [0.0, -1.0, -2.0]])
def test_a_tree_needs_a_score_a_node(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=f"2 nodes needs 2 scores, and was given {len(scores)}"):
        DraftTree.from_parents([1, 2], [-1, 0], scores)


def test_path_tokens() -> None:
    assert DraftTree.from_parents(TOKENS, PARENTS).path_tokens().tolist() == [
        [5, 0, 0],
        [5, 7, 0],
        [5, 9, 0],
        [5, 7, 8],
        [5, 9, 7],
        [5, 6, 0],
        [5, 9, 1],
    ]


def test_root_only() -> None:
    tree = DraftTree.root_only(mx.array([9]))
    assert (len(tree), tree.max_depth) == (1, 0)
    same = DraftTree.from_parents([9], [-1])
    for name in ("tokens", "parents", "depths", "log_probs", "ancestors"):
        assert mx.array_equal(getattr(tree, name), getattr(same, name))
    assert tree.path_tokens().tolist() == [[9]]


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1], [0]),
        ([1, 2], [-1]),
        ([1, 2], [-1, 1]),
        ([1, 2, 3], [-1, 2, 0]),
        ([1, 2], [-1, -1]),
        ([1, 2], [-1, 5]),
    ],
)
def test_what_is_no_tree_is_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(ValueError, match="parent"):
        DraftTree.from_parents(tokens, parents)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 10_000),
    truth=st.lists(st.integers(0, models.VOCAB - 1), max_size=4),
    extra=st.integers(0, 12),
)
def test_a_hidden_path_is_accepted_whole(seed: int, truth: list[int], extra: int) -> None:
    """The walk finds a path wherever its rows stand, and the paths' tokens agree."""
    tree = models.random_tree(np.random.default_rng(seed), 3, truth, extra=extra)
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    depths, lines = tree.depths.tolist(), tree.path_tokens().tolist()
    after = dict(enumerate([*truth, -1]))
    choices = [
        after[depth] if line[1 : depth + 1] == truth[:depth] else 0
        for depth, line in zip(depths, lines, strict=True)
    ]
    path = accept(tokens, parents, choices)
    assert [tokens[node] for node in path] == [3, *truth]
    assert [depths[node] for node in path] == list(range(len(truth) + 1))
    assert HostTree(tuple(tokens), tuple(parents), (0.0,) * len(tree)).depths == tuple(depths)


@st.composite
def verified(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and choices; of equal siblings only the first has children."""
    tokens, parents = [0], [-1]
    for _ in range(draw(st.integers(0, 14))):
        leaves = [
            node
            for node in range(len(tokens))
            if (tokens[node], parents[node]) not in list(zip(tokens, parents, strict=True))[:node]
        ]
        parents.append(draw(st.sampled_from(leaves)))
        tokens.append(draw(st.integers(0, 3)))
    return tokens, parents, draw(st.lists(st.integers(0, 4), min_size=15, max_size=15))


@given(verified(), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_host_and_device_accept_alike(
    case: tuple[list[int], list[int], list[int]], padding: int
) -> None:
    """The rule stands twice, side by side; also in trees that are filled up to a size."""
    tokens, parents, choices = case
    tree = DraftTree.from_parents(tokens, parents).padded(len(tokens) + padding, 0)
    known = tree.read()
    assert len(known.tokens) == len(tree) == len(tokens) + padding
    choices = (choices * 2)[: len(tree)]
    path = accept(known.tokens, known.parents, choices)
    leaf = accepted_leaf(tree, mx.array(choices, dtype=mx.int32))
    assert leaf.item() == path[-1]
    assert known.path(path[-1]) == path
    unpadded = accept(tokens, parents, choices)
    assert path == unpadded or (path[-1] >= len(tokens) and choices[0] == 0)


def test_a_padded_tree_is_the_same_on_host_and_device() -> None:
    tree = DraftTree.from_parents(TOKENS, PARENTS)
    padded = tree.padded(10, 0)
    host = padded.read()
    assert padded.tokens.tolist() == list(host.tokens) == [*TOKENS, 0, 0, 0]
    assert padded.parents.tolist() == list(host.parents)
    assert padded.depths.tolist() == list(host.depths)
    assert np.array(padded.ancestors[7:]).tolist() == [
        [node in (0, row) for node in range(10)] for row in (7, 8, 9)
    ]
    assert padded.leaf_bound >= host.leaves(range(1, len(host.tokens)))
    assert tree.padded(3, 0) is tree
