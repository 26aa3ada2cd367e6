"""Chances of acceptance, by score and by whether a node is a favourite."""

import math
import random

import pytest

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.acceptance import BINS, KINDS, AcceptanceModel, kinds_of, subtree
from mlx_redrafter.tree import HostTree


def test_subtree_keeps_parents_and_budgets() -> None:
    tree = HostTree((0, 1, 2, 3, 4), (-1, 0, 0, 1, 2), (0.0, -0.1, -0.5, -0.6, -0.7))
    assert subtree(tree, BeamShape(1, 2)) == [1, 3]
    assert subtree(tree, BeamShape(2, 1)) == [1, 2]
    assert subtree(tree, BeamShape(2, 2, 3)) == [1, 2, 3]


def test_acceptance_starts_from_the_drafters_word_and_learns() -> None:
    model = AcceptanceModel()
    assert model.chances[0] > 0.95
    assert model.chances[-1] < 0.01
    tree = HostTree((0, 1), (-1, 0), (0.0, -0.01))
    for _ in range(50):
        model.observe(StepRecord(tree, (2, 2), (0,)))
    assert model.chances[0] < 0.15


def test_kinds_tell_favourites_from_others() -> None:
    #       root 0 -> 1 (-.1) -> 3 (-.3);  0 -> 2 (-1.2) -> 4 (-1.3);  1 -> 5 (-2.5)
    tree = HostTree((9, 1, 2, 3, 4, 5), (-1, 0, 0, 1, 2, 1), (0.0, -0.1, -1.2, -0.3, -1.3, -2.5))
    kinds = kinds_of(tree)
    assert [kind < BINS for kind in kinds] == [True, True, False, True, False, False]
    assert kinds[2] == kinds[4] == BINS + 6
    assert kinds[5] == BINS + 8
    assert max(kinds) < KINDS == len(AcceptanceModel().chances)


def test_favourites_and_others_of_one_score_are_learnt_apart() -> None:
    model, rng = AcceptanceModel(), random.Random(0)
    tree = HostTree((0, 1, 2), (-1, 0, 0), (0.0, math.log(0.45), math.log(0.44)))
    for _ in range(400):
        hit = rng.random() < 0.9
        model.observe(StepRecord(tree, (1 if hit else 3, 3, 3), (0, 1) if hit else (0,)))
    favourite, other = (model.chances[kind] for kind in kinds_of(tree)[1:])
    assert favourite == pytest.approx(0.9, abs=0.05)
    assert other < 0.05
