"""Noise belongs to seed and position, and to nothing else."""

from __future__ import annotations

from math import sqrt

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.noise import noise_rows
from mlx_redrafter.sampler import NOISE_BLOCK, Sampler
from mlx_redrafter.sampling import SamplingConfig

V = models.VOCAB


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**20), count=st.integers(1, 9))
def test_a_row_depends_on_seed_and_position_only(seed: int, first: int, count: int) -> None:
    block = noise_rows(seed, first, count, 11)
    assert block.shape == (count, 11)
    assert block.dtype == mx.float32
    for index in range(count):
        assert mx.array_equal(block[index : index + 1], noise_rows(seed, first + index, 1, 11))


def test_rows_of_a_sampler_do_not_depend_on_how_they_are_asked_for() -> None:
    config = SamplingConfig(1.0, seed=7)
    wanted = noise_rows(7, 0, 80, V)
    for asked in ([(3, 5), (4, 1), (9, 20), (17, 40), (18, 1)], [(60, 6), (2, 3)], [(15, 2)]):
        sampler = Sampler(config, V)
        for first, count in asked:
            rows = sampler.noise(first, count)
            assert rows is not None
            assert mx.array_equal(rows, wanted[first : first + count])


def test_a_sampler_keeps_no_more_blocks_than_it_needs() -> None:
    sampler = Sampler(SamplingConfig(1.0), V)
    for first in range(0, 100, 3):
        sampler.noise(first, 5)
        assert len(sampler._blocks) <= 2
    assert max(sampler._blocks) == 103 // NOISE_BLOCK


def test_rows_differ_by_seed_and_by_position() -> None:
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1]
    rows = np.stack([np.array(noise_rows(seed, 0, 40, 16)) for seed in seeds]).reshape(-1, 16)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # No more alike than chance: the largest of about 50,000 correlations of 16 numbers.
    like = np.corrcoef(rows)
    np.fill_diagonal(like, 0)
    assert np.abs(like).max() < 0.93


def test_noise_is_gumbel() -> None:
    values = np.sort(np.array(noise_rows(3, 100, 200, 250)).ravel())
    assert np.isfinite(values).all()
    uniform = np.exp(-np.exp(-values))
    distance = np.abs(uniform - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert distance < 1.95 / sqrt(len(values))  # Kolmogorov and Smirnov at one in a thousand
    assert values.mean() == pytest.approx(0.5772, abs=0.03)


def test_greedy_has_no_noise() -> None:
    assert Sampler(SamplingConfig(), V).noise(3, 4) is None


@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_a_texts_noise_is_that_of_its_positions(length: int) -> None:
    """Position 0 is the prompt's first token's, so the first token drawn stands at its length."""
    model, prompt = models.shared("llama"), models.prompt_of(length)
    config = DecodingConfig(3, SamplingConfig(4.0, seed=2))
    text = [decoded.token for decoded in decode(SpeculativeModel(model), prompt, config)]
    logits = model(mx.array([[*prompt, *text]]))[0, length - 1 : -1]
    drawn = mx.argmax(logits / 4.0 + noise_rows(2, length, 3, V), axis=-1)
    assert text == drawn.tolist()


@pytest.mark.parametrize("drafts", [True, False])
def test_decoding_leaves_the_global_random_state_alone(drafts: bool) -> None:
    model = SpeculativeModel(models.shared("llama"), models.build_drafter())
    mx.random.seed(5)
    before = [np.array(state) for state in mx.random.state]
    config = DecodingConfig(12, SamplingConfig(1.0, top_k=9, top_p=0.9, seed=3), draft=drafts)
    first = [decoded.token for decoded in decode(model, [1, 2, 3], config)]
    for state, old in zip(mx.random.state, before, strict=True):
        np.testing.assert_array_equal(np.array(state), old)
    mx.random.seed(6)
    assert [decoded.token for decoded in decode(model, [1, 2, 3], config)] == first
