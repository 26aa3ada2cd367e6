from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mlx_redrafter.drafting.copies import Copies
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.suffix import Continuation
from mlx_redrafter.engine.copy_pricing import BudgetedCopies, CopyShare
from mlx_redrafter.engine.copying import Candidates, CopyProposal, mean_chances
from mlx_redrafter.planning.copy_planner import MARGIN, CopyPlanner
from mlx_redrafter.tree import HostTree

SHAPE = BeamShape(2, 2, 3)
CERTAIN = [0.98**depth for depth in range(1, 33)]
DOUBTFUL = [0.2, 0.05]


@dataclass
class Machine:
    """Prices of a machine, in milliseconds of its plain step."""

    row: float = 0.1
    plain: float = 1.0
    alone: float = 1.05
    draft: float = 0.2
    yields: float = 0.6
    rate: float = 1.0
    sizes: tuple[int, ...] = field(default=(1, 2, 4, 8, 16, 32, 48))

    def plain_seconds(self, context: int) -> float:
        return self.plain

    def apart_seconds(self, context: int) -> float:
        return 2 * max(0.0, self.alone - self.plain)

    def check_seconds(self, rows: int, context: int) -> float:
        return self.alone + self.row * (rows - 1)

    def draft_seconds(self, shape: BeamShape) -> float:
        return self.draft

    def guessed(self, shape: BeamShape) -> float:
        return self.yields


def planner(**prices: float) -> CopyPlanner:
    return CopyPlanner(lambda: Machine(**prices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chances", "row", "count"),
    [
        (CERTAIN, 0.01, 32),
        (CERTAIN, 0.5, 31),
        (CERTAIN, 2.0, 0),
        (DOUBTFUL, 0.02, 2),
        (DOUBTFUL, 0.07, 1),
        (DOUBTFUL, 0.2, 0),
        ([], 0.01, 0),
        ([0.04], 0.001, 0),
    ],
)
def test_as_many_are_verified_as_earn_their_time(
    chances: list[float], row: float, count: int
) -> None:
    assert planner(row=row).num_nodes(chances, 0) == count


def test_a_step_of_copies_fills_a_tile() -> None:
    """Beyond the eighth row the next tile would begin, which doubtful tokens do not pay for."""
    chances = [0.9**depth for depth in range(1, 33)]

    class Tiles(Machine):
        def check_seconds(self, rows: int, context: int) -> float:
            return 1.0 + 4.0 * ((rows - 1) // 8)

    assert CopyPlanner(Tiles).num_nodes(chances, 0) == 7


def test_what_decodes_fast_is_not_slowed_down_for_little() -> None:
    assert planner(rate=1.0, row=0.3).num_nodes([0.5], 0) == 1
    assert planner(rate=3.0, row=0.3).num_nodes([0.5], 0) == 0


def test_a_step_waits_for_copies_only_where_they_are_likely() -> None:
    assert planner().waits_for_copies(0.9, CERTAIN, 0)
    assert not planner(alone=1.5).waits_for_copies(0.01, CERTAIN, 0)
    assert not planner().waits_for_copies(0.9, [0.05], 0)
    assert not planner().waits_for_copies(0.9, [], 0)


def test_waiting_costs_both_steps_that_no_longer_overlap() -> None:
    """One that overlaps with nothing takes 0.3 longer: this one, and the one after the copies."""
    lone = planner(alone=1.3, row=0.05)
    gained = 0.9 - (1.35 - 1.0 + MARGIN)  # what one copied token is worth
    assert not lone.waits_for_copies(0.9 * 0.6 / gained, [0.9], 0)
    assert lone.waits_for_copies(1.1 * 0.6 / gained, [0.9], 0)


def test_a_step_waits_where_copies_follow_what_none_foretold() -> None:
    """A table's cell is new, and what stands after it is not."""
    table = planner(alone=1.1)
    assert not table.waits_for_copies(0.0, [], 0)
    for _ in range(8):
        table.take_surprise(CERTAIN, 0)
    assert table.waits_for_copies(0.0, [], 0)
    for _ in range(40):
        table.take_surprise(DOUBTFUL, 0)
    assert not table.waits_for_copies(0.0, [], 0)


def test_a_long_certain_match_leaves_the_draft_out() -> None:
    assert planner(row=0.05).share(SHAPE, CERTAIN, 0) == CopyShare(31, 0)


def test_doubtful_copies_stand_beside_the_draft_or_nowhere() -> None:
    assert planner(row=0.01).share(SHAPE, DOUBTFUL, 0) == CopyShare(2, 3)
    assert planner(row=0.3, yields=2.0).share(SHAPE, DOUBTFUL, 0) == CopyShare(0, 3)


def test_the_next_draft_is_left_out_where_copies_go_on() -> None:
    assert not planner().drafts_after(0.9, SHAPE)
    assert planner().drafts_after(0.2, SHAPE)
    assert planner(draft=0.01).drafts_after(0.9, SHAPE)


def test_a_budget_is_shared_by_chance() -> None:
    budget = BudgetedCopies(7)
    shape = BeamShape(2, 4, 7)
    assert budget.share(shape, CERTAIN, 0) == CopyShare(7, 0)
    assert budget.share(shape, [], 0) == CopyShare(0, 7)
    assert budget.share(shape, [0.3, 0.1, 0.05], 0) == CopyShare(1, 6)
    assert budget.num_nodes(CERTAIN, 0) == 7
    assert budget.num_nodes(DOUBTFUL, 0) == 1
    assert budget.waits_for_copies(0.9, CERTAIN, 0)
    assert not budget.waits_for_copies(0.9, [0.01], 0)
    assert budget.drafts_after(0.2, shape)


def proposal(*chains: tuple[int, ...], chances: list[float]) -> CopyProposal:
    continuations = tuple(Continuation(chain, 1) for chain in chains)
    return CopyProposal(Copies(5, 4, continuations), [1.0, *chances])


GUESSED = HostTree((5, 1, 2, 3), (-1, 0, 1, 0), (0.0, -0.1, -0.3, -2.0))


def test_guesses_and_copies_are_candidates_by_chance() -> None:
    copied = proposal((1, 7), chances=[0.6, 0.5])
    candidates = Candidates(5, GUESSED, [1.0, 0.4, 0.3, 0.2], copied)
    assert candidates.chances == [0.6, 0.5, 0.3, 0.2]
    known = candidates.first(3)
    assert known.tree.tokens == (5, 1, 7, 2)
    assert known.tree.parents == (-1, 0, 1, 1)
    assert known.tree.log_probs == pytest.approx((0.0, -0.1, -0.6931, -0.3), abs=1e-3)
    assert known.copied == {2}


def test_a_chain_is_the_path_that_promises_most() -> None:
    copied = proposal((1, 7), chances=[0.6, 0.2])
    candidates = Candidates(5, GUESSED, [1.0, 0.4, 0.3, 0.2], copied, chain=True)
    assert candidates.chances == [0.6, 0.3]
    known = candidates.first(2)
    assert known.tree.tokens == (5, 1, 2)
    assert known.tree.parents == (-1, 0, 1)
    assert known.copied == frozenset()
    assert candidates.first(0).tree.tokens == (5,)


def test_candidates_of_one_kind_only() -> None:
    copied = proposal((1, 7), chances=[0.6, 0.2])
    assert Candidates(5, None, [1.0], copied).first(9).copied == {1, 2}
    assert Candidates(5, GUESSED, [1.0, 0.4, 0.3, 0.2], None).first(9).tree.tokens == (5, 1, 2, 3)


def test_chances_of_a_batch_are_means_by_rank() -> None:
    assert mean_chances([[0.5, 0.25], [], [0.25]]) == pytest.approx([0.25, 0.25 / 3])
