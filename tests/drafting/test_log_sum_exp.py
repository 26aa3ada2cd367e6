"""The normaliser of drafts equals mlx's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_redrafter.drafting.log_sum_exp import log_sum_exp


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 3e4])
def test_it_is_the_exact_one_to_rounding(scale: float) -> None:
    scores = scale * mx.random.normal((2, 3, 501), key=mx.random.key(3))
    found, exact = log_sum_exp(scores), mx.logsumexp(scores, axis=-1, keepdims=True)
    assert found.shape == (2, 3, 1)
    np.testing.assert_allclose(np.array(found), np.array(exact), rtol=1e-6, atol=1e-5)


def test_filtered_tokens_count_nothing() -> None:
    row = [0.5, -1.0, 2.0, 0.0]
    filtered = mx.array([[*row, -mx.inf, -mx.inf]])
    np.testing.assert_allclose(
        np.array(log_sum_exp(filtered)), np.array([[mx.logsumexp(mx.array(row)).item()]]), atol=1e-6
    )
    alone = mx.array([[-mx.inf, 3.0, -mx.inf]])
    assert log_sum_exp(alone).item() == pytest.approx(3.0, abs=1e-6)
