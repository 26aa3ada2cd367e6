"""Quantities that are measured in sums, of which the first may jump."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from mlx_redrafter.planning.estimate import FIRST_NOISE, Estimate, Quantity, Story

MACHINE, KIND = Quantity(0.5, 0.03), Quantity(0.3, 0.01, memory=0.999)
STORIES = (Story(0.9), Story(0.05, jump=0.7), Story(0.05, delay=1.0))


def estimate(*quantities: Quantity) -> Estimate:
    return Estimate(quantities or (MACHINE, KIND), STORIES)


def test_where_nothing_ever_happens_it_is_a_kalman_filter() -> None:
    """Against the textbook's equations, with the noise that it has learnt by each step."""
    quantities = (MACHINE, KIND, Quantity(0.2, 0.005, memory=0.99))
    found = Estimate(quantities, [Story(1.0)])
    rng, noise = np.random.default_rng(0), FIRST_NOISE**2
    means, spread = np.zeros(3), np.diag([one.spread**2 for one in quantities])
    memory = np.array([one.memory for one in quantities])
    for _ in range(50):
        steps = int(rng.integers(1, 4))
        parts, value = np.array([1.0, *rng.random(2)]), float(rng.normal())
        means, spread = means * memory**steps, spread * np.outer(memory**steps, memory**steps)
        spread += steps * np.diag([one.drift**2 for one in quantities])
        gain = spread @ parts / (parts @ spread @ parts + noise / steps)
        means = means + gain * (value - parts @ means)
        spread = spread - np.outer(gain, parts @ spread)
        found.take(parts, value, steps)
        noise = found._noise
        assert [found.mean(place) for place in range(3)] == pytest.approx(means.tolist())
        assert found.deviation(parts) == pytest.approx(math.sqrt(parts @ spread @ parts))


def test_what_shows_at_each_change_is_the_kinds_own() -> None:
    found = estimate()
    one, both = found.parts({0: 1.0}), found.parts({0: 1.0, 1: 1.0})
    rng = random.Random(1)
    for _ in range(8):
        for parts, value in ((one, 0.0),) * 3 + ((both, 0.6),) * 3:
            found.take(parts, value + rng.gauss(0, 0.05))
    assert found.mean(0) == pytest.approx(0.0, abs=0.1)
    assert found.mean(1) == pytest.approx(0.6, abs=0.1)


def test_what_jumps_and_stays_is_the_first_quantitys() -> None:
    """Even if it does so with a change of kinds: what both show afterwards is the machine's."""
    found = estimate()
    one, both = found.parts({0: 1.0}), found.parts({0: 1.0, 1: 1.0})
    for _ in range(8):
        for parts in (one, both):
            found.take(parts, 0.0)
    for parts in (both, one, both, one):
        found.take(parts, 1.0)
    assert found.mean(0) == pytest.approx(1.0, abs=0.1)
    assert found.mean(1) == pytest.approx(0.0, abs=0.1)


def test_a_measurement_that_waited_for_something_leaves_no_trace() -> None:
    found = estimate()
    one, both = found.parts({0: 1.0}), found.parts({0: 1.0, 1: 1.0})
    for _ in range(8):
        for parts in (one, both):
            found.take(parts, 0.0)
    found.take(both, math.log(400))
    for parts in (one, both):
        found.take(parts, 0.0)
    assert found.mean(0) == pytest.approx(0.0, abs=0.05)
    assert found.mean(1) == pytest.approx(0.0, abs=0.05)


def test_on_a_noisy_machine_a_single_measurement_says_less() -> None:
    rng, told = random.Random(0), []
    for noise in (0.05, 0.4):
        found = estimate()
        parts = found.parts({0: 1.0})
        for _ in range(100):
            found.take(parts, rng.gauss(0, noise))
        before = found.mean(0)
        found.take(parts, before + 0.2)
        told.append(found.mean(0) - before)
    assert told[1] < 0.5 * told[0]


def test_what_is_not_measured_is_known_less_and_less_and_can_be_forgotten() -> None:
    found = estimate()
    apart = found.parts({1: 1.0})
    for _ in range(10):
        found.take(found.parts({0: 1.0}), 0.0)
        found.take(found.parts({0: 1.0, 1: 1.0}), 0.3)
    sure = found.deviation(apart)
    for _ in range(100):
        found.take(found.parts({0: 1.0}), 0.0)
    assert sure < found.deviation(apart) < KIND.spread
    assert 0.2 < found.mean(1) < 0.3
    found.forget(1, KIND)
    assert found.mean(1) == 0.0
    assert found.deviation(apart) == pytest.approx(KIND.spread)
