"""Paths of draft trees: which node stands on which row, and back."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_redrafter.cache.batch_tree import BatchTree
from mlx_redrafter.cache.tree_paths import TreePaths, take_nodes
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.tree import DraftTree, HostTree


@st.composite
def parents(draw: st.DrawFn, size: int | None = None) -> list[int]:
    n = size or draw(st.integers(2, 14))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, n))]


def tree_of(line: list[int]) -> DraftTree:
    return DraftTree.from_parents([3 * node + 1 for node in range(len(line))], line)


def lines_of(line: list[int]) -> list[list[int]]:
    """Root-to-leaf paths, in the order of their leaves."""
    leaves = [node for node in range(len(line)) if node not in line]
    found = []
    for leaf in leaves:
        path = [leaf]
        while line[path[0]] >= 0:
            path.insert(0, line[path[0]])
        found.append(path)
    return found


@settings(max_examples=60, deadline=None)
@given(parents(), st.integers(0, 3))
def test_every_leaf_has_its_path_and_every_node_a_row_of_its_own(
    line: list[int], spare: int
) -> None:
    tree = tree_of(line)
    known = lines_of(line)
    assert tree.leaf_bound == len(known)
    loose = replace(tree, max_leaves=len(known) + spare, max_depth=tree.max_depth + spare)
    paths = TreePaths.of(loose)
    rows = np.array(paths.rows).reshape(paths.paths, paths.levels)
    for path, row in zip(known, rows, strict=False):
        assert row[: len(path)].tolist() == path
    assert paths.to_nodes(paths.to_rows(tree.tokens[None])).tolist() == [tree.tokens.tolist()]
    flat = rows.reshape(-1)
    for node, place in enumerate(np.array(paths.places)):
        assert flat[place] == node
        before = rows[place // paths.levels][: place % paths.levels].tolist()
        assert before == next(path for path in known if node in path)[: len(before)]
    end = known[-1][-1]
    assert rows[paths.path_of(end).item()][len(known[-1]) - 1] == end


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8).flatmap(lambda n: st.tuples(parents(n), parents(n), parents(n))))
def test_a_batch_is_its_trees(lines: tuple[list[int], ...]) -> None:
    trees = [tree_of(line) for line in lines]
    batch = BatchTree.stack(trees, [5, 9, 2])
    paths = TreePaths.of(batch)
    values = mx.arange(3 * len(trees[0]) * 2).reshape(3, -1, 2)
    rows = paths.to_rows(values)
    assert mx.array_equal(paths.to_nodes(rows), values)
    for place, (line, tree) in enumerate(zip(lines, trees, strict=True)):
        own = rows[place * paths.paths : (place + 1) * paths.paths]
        for path, row in zip(lines_of(line), own, strict=False):
            assert row[: len(path)].tolist() == [values[place, node].tolist() for node in path]
        assert len(tree) == paths.nodes
    states = paths.spread(mx.arange(3))
    assert states.tolist() == [place for place in range(3) for _ in range(paths.paths)]
    assert paths.placing is not None
    positions = paths.placing.positions(9 + 4)  # what a layer asks for that is four tokens on
    assert positions[:, 0].tolist() == [s + 4 for s in (5, 9, 2) for _ in range(paths.paths)]
    assert mx.array_equal(
        positions - positions[:, :1], mx.broadcast_to(mx.arange(paths.levels), positions.shape)
    )


def test_rows_along_paths_of_several_texts() -> None:
    values = mx.arange(24).reshape(2, 4, 3)
    taken = take_nodes(values, [1, 0], [[0, 2], [0, 3]])
    assert taken.tolist() == [
        [values[1, 0].tolist(), values[1, 2].tolist()],
        [values[0, 0].tolist(), values[0, 3].tolist()],
    ]


@settings(max_examples=60, deadline=None)
@given(parents(), st.data())
def test_what_was_read_of_a_tree_bounds_its_beginning(line: list[int], data: st.DataObject) -> None:
    nodes = data.draw(st.integers(0, len(line) - 1))
    known = HostTree(tuple(range(len(line))), tuple(line), (0.0,) * len(line))
    loose = replace(tree_of(line), max_leaves=None, max_depth=20)
    part = loose.first(nodes, known)
    beginning = tree_of(line[: nodes + 1])
    assert (part.max_leaves, part.max_depth) == (beginning.max_leaves, beginning.max_depth)
    assert known.leaves(range(1, 1 + nodes)) == beginning.leaf_bound
    assert part.tokens.tolist() == beginning.tokens.tolist()
    assert loose.first(nodes).leaf_bound >= beginning.leaf_bound


@pytest.mark.parametrize(
    ("shape", "leaves"),
    [
        (BeamShape(1, 5), 1),
        (BeamShape(4, 1), 4),
        (BeamShape(4, 5), 16),
        (BeamShape(3, 5, 7), 5),
        (BeamShape(2, 4, 2), 2),
        (BeamShape(4, 5, None, 3), 3),
        (BeamShape(4, 5, None, 1), 1),
        (BeamShape(4, 5, 6, 3), 2),
        (BeamShape(4, 5, 3, 3), 1),
    ],
)
def test_a_beam_has_no_more_leaves_than_its_levels_allow(shape: BeamShape, leaves: int) -> None:
    assert shape.leaves == leaves
