"""The largest entries of rows, found without sorting them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_redrafter.logits import BLOCK, SHORT_ROW, largest

LENGTHS = (7, BLOCK, SHORT_ROW, SHORT_ROW + 1, 32 * BLOCK, 8192, 40_003, 3 * SHORT_ROW * BLOCK + 5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_they_are_those_of_a_sort(length: int, count: int) -> None:
    rows = mx.random.normal((2, length), key=mx.random.key(length))
    found = np.array(largest(rows, count))
    expected = np.argsort(-np.array(rows), axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [2, 8, 20, 64])
def test_they_may_stand_together_or_apart(count: int) -> None:
    """All in one block, at the row's very end, or one a block."""
    length = 100 * BLOCK + 3
    for places in (
        np.arange(count) + 5 * BLOCK,
        length - 1 - np.arange(count),
        np.arange(count) * BLOCK + np.arange(count),
    ):
        rows = np.zeros((1, length), np.float32)
        rows[0, places] = 1.0 + np.arange(count)
        assert np.array(largest(mx.array(rows), count))[0].tolist() == places[::-1].tolist()


@pytest.mark.parametrize("value", [-np.inf, 0.0, np.inf, np.nan])
def test_indices_stay_within_the_row(value: float) -> None:
    """Whatever a branch computed, and however few entries a filter left."""
    rows = np.full((1, SHORT_ROW + 3), value, np.float32)
    rows[0, 17] = 5.0
    found = np.array(largest(mx.array(rows), 4))[0]
    assert found.shape == (4,)
    assert ((found >= 0) & (found < SHORT_ROW + 3)).all()
    if value == -np.inf:
        assert found[0] == 17
