"""Components that are measured in sums, which may jump."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from mlx_redrafter.planning.kalman import FIRST_NOISE, Component, Hypothesis, KalmanFilter

MACHINE, KIND = Component(0.5, 0.03, 0.7), Component(0.3, 0.01, 0.2, memory=0.999)
HYPOTHESES = (Hypothesis(0.9), Hypothesis(0.05, jumped=True), Hypothesis(0.05, delay=1.0))


def tracking(*components: Component) -> KalmanFilter:
    return KalmanFilter(components or (MACHINE, KIND), HYPOTHESES)


def test_where_nothing_ever_happens_it_is_a_kalman_filter() -> None:
    """Against the textbook's equations, with the noise that it has learnt by each step."""
    components = (MACHINE, KIND, Component(0.2, 0.005, 0.1, memory=0.99))
    found = KalmanFilter(components, [Hypothesis(1.0)])
    rng, noise = np.random.default_rng(0), FIRST_NOISE**2
    means, spread = np.zeros(3), np.diag([one.deviation**2 for one in components])
    memory = np.array([one.memory for one in components])
    for _ in range(50):
        steps = int(rng.integers(1, 4))
        weights, value = np.array([1.0, *rng.random(2)]), float(rng.normal())
        means, spread = means * memory**steps, spread * np.outer(memory**steps, memory**steps)
        spread += steps * np.diag([one.drift**2 for one in components])
        gain = spread @ weights / (weights @ spread @ weights + noise / steps)
        means = means + gain * (value - weights @ means)
        spread = spread - np.outer(gain, weights @ spread)
        found.update(weights, value, steps)
        noise = found._noise
        assert [found.mean(place) for place in range(3)] == pytest.approx(means.tolist())
        assert found.deviation(weights) == pytest.approx(math.sqrt(weights @ spread @ weights))


def test_what_shows_at_each_change_is_the_kinds_own() -> None:
    found = tracking()
    one, both = found.weights({0: 1.0}), found.weights({0: 1.0, 1: 1.0})
    rng = random.Random(1)
    for _ in range(8):
        for weights, value in ((one, 0.0),) * 3 + ((both, 0.6),) * 3:
            found.update(weights, value + rng.gauss(0, 0.05))
    assert found.mean(0) == pytest.approx(0.0, abs=0.1)
    assert found.mean(1) == pytest.approx(0.6, abs=0.1)


def test_what_jumps_and_stays_is_what_jumps_furthest() -> None:
    """Even if it does so with a change of kinds: what both show afterwards is the machine's."""
    found = tracking()
    one, both = found.weights({0: 1.0}), found.weights({0: 1.0, 1: 1.0})
    for _ in range(8):
        for weights in (one, both):
            found.update(weights, 0.0)
    for weights in (both, one, both, one):
        found.update(weights, 1.0)
    assert found.mean(0) == pytest.approx(1.0, abs=0.1)
    assert found.mean(1) == pytest.approx(0.0, abs=0.1)


def test_a_measurement_that_waited_for_something_leaves_no_trace() -> None:
    found = tracking()
    one, both = found.weights({0: 1.0}), found.weights({0: 1.0, 1: 1.0})
    for _ in range(8):
        for weights in (one, both):
            found.update(weights, 0.0)
    found.update(both, math.log(400))
    for weights in (one, both):
        found.update(weights, 0.0)
    assert found.mean(0) == pytest.approx(0.0, abs=0.05)
    assert found.mean(1) == pytest.approx(0.0, abs=0.05)


def test_on_a_noisy_machine_a_single_measurement_says_less() -> None:
    rng, told = random.Random(0), []
    for noise in (0.05, 0.4):
        found = tracking()
        weights = found.weights({0: 1.0})
        for _ in range(100):
            found.update(weights, rng.gauss(0, noise))
        before = found.mean(0)
        found.update(weights, before + 0.2)
        told.append(found.mean(0) - before)
    assert told[1] < 0.5 * told[0]


def test_what_is_not_measured_is_known_less_and_less_and_can_be_forgotten() -> None:
    found = tracking()
    apart = found.weights({1: 1.0})
    for _ in range(10):
        found.update(found.weights({0: 1.0}), 0.0)
        found.update(found.weights({0: 1.0, 1: 1.0}), 0.3)
    sure = found.deviation(apart)
    for _ in range(100):
        found.update(found.weights({0: 1.0}), 0.0)
    assert sure < found.deviation(apart) < KIND.deviation
    assert 0.2 < found.mean(1) < 0.3
    found.reset(1)
    assert found.mean(1) == 0.0
    assert found.deviation(apart) == pytest.approx(KIND.deviation)
