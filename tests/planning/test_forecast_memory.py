"""What is remembered of drafts, and by which shapes it is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_machines import CPU, costs_of

from mlx_redrafter.drafting.recorded import RecordedDraft, RecordedDrafts
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.planning.forecast import TreeMemory
from mlx_redrafter.planning.shapes import covers
from mlx_redrafter.tree import HostTree

CHAIN = HostTree((0,) * 6, tuple(range(-1, 5)), tuple(-0.1 * depth for depth in range(6)))


def test_what_is_kept_of_a_tree_is_its_first_beam() -> None:
    """A wider shape would have drafted nodes beside it, which are not known."""
    memory = TreeMemory()
    memory.add(CHAIN, BeamShape(4, 5))
    assert memory.covering(BeamShape(1, 5)) == 1
    assert memory.covering(BeamShape(2, 3, 5)) == 0
    assert memory.covering(BeamShape(2, 2)) == 0


def test_a_tree_of_few_leaves_says_nothing_of_more() -> None:
    memory = TreeMemory()
    tree = HostTree((0,) * 7, (-1, 0, 1, 2, 3, 4, 0), (0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -2.0))
    memory.add(tree, BeamShape(4, 5, None, 4))  # eight nodes, of which six were kept
    assert memory.covering(BeamShape(4, 5, None, 4)) == 0
    assert memory.covering(BeamShape(2, 5, None, 2)) == 1
    assert memory.covering(BeamShape(4, 5, 6)) == 0
    assert not covers(BeamShape(4, 5, 6, 4), BeamShape(4, 5, None, 4))


def test_recorded_drafts_are_gone_as_soon_as_they_have_failed() -> None:
    recorded = RecordedDrafts(BeamShape(1, 5), (RecordedDraft.of(CHAIN, (0, 1)),) * 4)
    memory = TreeMemory(recorded)
    assert memory.covering(BeamShape(1, 5)) == 4
    memory.forget_recorded()
    assert memory.covering(BeamShape(1, 5)) == 0
    assert not memory.trees


def test_what_paths_cost_goes_with_the_machine_and_the_texts() -> None:
    costs = replace(costs_of(CPU), path_row=0.05)
    assert costs.scaled({1: 2.0, 16: 2.0}).path_row == pytest.approx(0.1)
    assert costs.for_batch(3).path_row == pytest.approx(0.15)
