"""How much of a draft is verified."""

from collections.abc import Callable

import pytest
from planning_machines import CPU, REAL, Chat, Text, costs_of

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.num_nodes import best_prefix
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.tree import HostTree

SIZES = (1, 2, 3, 4)


def per_row(price: float) -> Callable[[int], float]:
    return lambda rows: 1.0 + price * (rows - 1)


def best_count(
    chances: list[float], sizes: tuple[int, ...], seconds: Callable[[int], float], rate: float
) -> int:
    return best_prefix(chances, sizes, seconds, rate, seconds(1))[0]


def test_rows_have_to_earn_their_time() -> None:
    # At two tokens a second a row of 0.2 s has to yield 0.4 tokens.
    assert best_count([0.9, 0.5, 0.3], SIZES, per_row(0.2), 2.0) == 2
    assert best_count([0.9, 0.5, 0.3], SIZES, per_row(0.01), 2.0) == 3
    assert best_count([0.3, 0.2, 0.1], SIZES, per_row(0.2), 2.0) == 0
    # The faster decoding goes on the whole, the more a second is worth.
    assert best_count([0.9, 0.5, 0.3], SIZES, per_row(0.2), 4.0) == 1


def test_a_poor_row_is_taken_for_the_sake_of_those_behind_it() -> None:
    steps = {1: 1.0, 2: 1.5, 3: 1.5, 4: 1.5}
    assert best_count([0.4, 0.4, 0.4], SIZES, steps.__getitem__, 2.0) == 3
    assert best_count([0.4, 0.4, 0.1], SIZES, steps.__getitem__, 2.0) == 0


def test_only_counts_on_offer_are_chosen() -> None:
    assert best_count([0.9, 0.9, 0.1], (1, 3), per_row(0.5), 1.0) == 2
    assert best_count([], (1,), per_row(0.01), 1.0) == 0


def test_what_is_gained_is_told_in_tokens() -> None:
    count, gain = best_prefix([0.9, 0.5, 0.3], SIZES, per_row(0.2), 2.0, 1.0)
    assert (count, gain) == (2, pytest.approx(1.4 - 2.0 * 0.4))
    assert best_prefix([0.9, 0.5], SIZES, per_row(0.2), 2.0, 0.1) == (0, 0.0), "none costs less"


def copied(tokens: int, seconds: float) -> ObservedStep:
    """A step that verified a copy, all of which was right."""
    chain = tuple(range(1 + tokens))
    tree = HostTree(chain, (-1, *chain[:-1]), (0.0,) * len(chain))
    record = StepRecord(tree, (*chain[1:], 0), chain[:-1], frozenset(chain[1:]))
    return ObservedStep(None, [record], seconds, 64)


def test_after_copies_as_many_guesses_are_worth_it_as_before() -> None:
    """What was copied is made in no time, and says nothing of texts without copies."""
    costs = costs_of(CPU)
    chat = Chat(costs, Planner(costs), noise=0.0).answers(REAL, 8)
    planner = chat.planner
    assert planner is not None
    text = Text(*REAL, seed=3)
    shape = BeamShape(3, 4, 7)
    trees = [text.step(shape).tree for _ in range(40)]

    def verified() -> list[int]:
        return [planner.num_nodes_to_verify(tree, 64) for tree in trees]

    before = verified()
    for _ in range(40):
        planner.observe(copied(20, costs.verify_seconds(21, 64)))
    assert sum(before) > 40
    assert verified() == before
