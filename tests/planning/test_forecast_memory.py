"""What is remembered of drafts, and by which shapes it is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_machines import CPU, REAL, Text, costs_of

from mlx_redrafter.drafting.recorded import RecordedDraft, RecordedDrafts
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.planning import forecast
from mlx_redrafter.planning.acceptance import AcceptanceModel
from mlx_redrafter.planning.forecast import PLACES_DIFFER, TreeMemory, Yields, path_rows
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


def test_what_is_remembered_again_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers may begin with what was known before another; of what nobody has nothing is kept."""
    counted, kinds_of = [], forecast.kinds_of
    monkeypatch.setattr(forecast, "kinds_of", lambda tree: counted.append(tree) or kinds_of(tree))
    memory, candidates = TreeMemory(), [BeamShape(1, 2), BeamShape(1, 4), BeamShape(4, 4)]
    yields, chances = Yields(candidates, memory), AcceptanceModel().chances

    def drafted(confidence: float) -> list[HostTree]:
        text = Text(confidence, 0.5)
        trees = [text.step(BeamShape(4, 4)).tree for _ in range(3)]
        for tree in trees:
            memory.add(tree, BeamShape(4, 4))
        return trees

    before = drafted(0.5)
    known, saved = yields.expected(chances), memory.save()
    memory.begin_again([])
    after = drafted(0.9)
    assert yields.expected(chances) != known
    memory.restore(saved)
    assert yields.expected(chances) == known == Yields(candidates, memory).expected(chances)
    assert counted == [*before, *after, *before], "the last three by others"
    assert len(yields._counts) == 3


def test_paths_are_counted_where_they_cost_anything() -> None:
    memory, tree = TreeMemory(), Text(*REAL).step(BeamShape(4, 4)).tree
    memory.add(tree, BeamShape(4, 4))
    candidates, chances = [BeamShape(2, 3), BeamShape(4, 4)], AcceptanceModel().chances
    told = Yields(candidates, memory).expected(chances)
    assert told[BeamShape(4, 4)].path_rows == path_rows(tree)
    untold = Yields(candidates, memory, paths=False).expected(chances)
    assert untold == {shape: replace(one, path_rows=0.0) for shape, one in told.items()}


@pytest.mark.parametrize(
    ("others", "factor"), [(0.0, PLACES_DIFFER), (-20.0, 1 / PLACES_DIFFER), (-0.5, 1.0)]
)
def test_places_are_made_comparable_by_no_more_than_they_may_differ(
    others: float, factor: float
) -> None:
    """A long draft was seen at one place, and short ones at many that are easier or harder."""
    assert PLACES_DIFFER == 2.5
    short, long = BeamShape(1, 1), BeamShape(1, 5)
    score = -0.5 if others else -3.0
    tree = HostTree((0,) * 6, tuple(range(-1, 5)), (0.0, *(score * (1 + n) for n in range(5))))
    memory, alone = TreeMemory(), TreeMemory()
    for one in (memory, alone):
        one.add(tree, long)
    for _ in range(19):
        memory.add(HostTree((0, 0), (-1, 0), (0.0, others)), short)
    chances = AcceptanceModel().chances
    by_itself = Yields([short, long], alone).expected(chances, short)[long].accepted
    among_others = Yields([short, long], memory).expected(chances, short)[long].accepted
    assert among_others == pytest.approx(factor * by_itself)
