"""Timings that are believed, and those that are not: a clock that the test moves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planning_machines import CPU, costs_of

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.planning import calibration, cost_store, measuring
from mlx_redrafter.planning.calibration import SIZES, calibrate, calibrate_there
from mlx_redrafter.planning.cost_store import (
    cache_directory,
    load_costs,
    measure_there,
    save_costs,
)
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.measuring import Timings, agree, time_in_turns, timings_of


class Clock:
    """Time that passes in calls and rests only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measuring.time, "sleep", self.wait)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def calls(self, seconds: list[Callable[[int], float]]) -> list[Callable[[], None]]:
        """Calls that take what each says of how often it was called before."""

        def call(take: Callable[[int], float]) -> Callable[[], None]:
            times = iter(range(10**6))
            return lambda: self.wait(take(next(times)))

        return [call(take) for take in seconds]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("calls", "seconds"),
    [
        pytest.param([lambda _: 0.002, lambda _: 0.003], (0.002, 0.003), id="times that repeat"),
        # Sixteen rows may cost less than twelve, where kernels work in tiles.
        pytest.param(
            [lambda _: 0.002, lambda _: 0.009, lambda _: 0.003],
            (0.002, 0.009, 0.003),
            id="a fall that repeats",
        ),
        # The second block is slow throughout; the third agrees with nobody, the fourth with it.
        pytest.param(
            [lambda n: 0.02 if 5 <= n < 10 else 0.002, lambda _: 0.003],
            (0.002, 0.003),
            id="a busy while",
        ),
    ],
)
def test_times_are_believed_once_they_repeat(
    calls: list[Callable[[int], float]], seconds: tuple[float, ...], clock: Clock
) -> None:
    timed = time_in_turns(clock.calls(calls))
    assert timed.seconds == pytest.approx(seconds)
    assert not timed.doubtful


def test_times_that_never_agree_are_doubtful(clock: Clock) -> None:
    timed = time_in_turns(clock.calls([lambda _: 0.002, lambda n: 0.003 * 1.5 ** (n // 4)]))
    assert timed.doubtful
    assert timed.seconds[0] == pytest.approx(0.002)


def test_slow_calls_are_timed_a_few_times_and_hopeless_ones_left_out(clock: Clock) -> None:
    counts = [0] * 6

    def counted(place: int, seconds: float) -> Callable[[int], float]:
        def take(_: int) -> float:
            counts[place] += 1
            return seconds

        return take

    calls = clock.calls([counted(n, 0.05 * 4**n) for n in range(6)])
    timed = time_in_turns(calls, hopeless=10.0)
    assert len(timed.seconds) == 4  # 16 and 64 times the first
    assert counts == [4, 3, 3, 3, 0, 0]
    assert clock.now < 3 * sum(0.05 * 4**n for n in range(4)) + 1.0


def test_blocks_agree_in_times_and_order() -> None:
    assert agree([1.0, 2.0], [1.1, 1.9])
    assert not agree([1.0, 2.0], [1.0, 3.0])
    assert agree([1.0, 1.1, 1.0], [1.0, 1.0, 1.1])  # falls within the noise
    assert not agree([1.0, 1.4, 1.15], [1.0, 1.22, 1.24])


@pytest.fixture
def model() -> SpeculativeModel:
    return SpeculativeModel(models.shared("llama"), models.build_drafter())


def test_doubtful_costs_are_used_and_not_stored(
    model: SpeculativeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "agree", lambda _before, _after: False)
    assert load_costs(model, tmp_path).doubtful
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(measuring, "agree", lambda _before, _after: True)
    stored = load_costs(model, tmp_path)
    assert not stored.doubtful
    (path,) = tmp_path.iterdir()
    assert CostModel.from_dict(json.loads(path.read_text())["costs"]) == stored
    assert load_costs(model, tmp_path) == stored


def damages(costs: CostModel) -> list[str]:
    """Files of costs that cannot be believed."""
    whole = costs.to_dict()
    changed = [
        {"sizes": []}, {"contexts": ["a"]}, {"plain": []}, {"plain": [float("nan")]},
        {"verify": [[1.0]]}, {"draft": {"one": 1.0}}, {"draft": {"1": -1.0}}, {"replay": "x"},
        {"sizes": whole["sizes"][::-1]},
    ]  # fmt: skip
    entries = [{"format": cost_store.FORMAT, "costs": {**whole, **one}} for one in changed]
    return ["", "[" * 100_000, "[]", "9" * 5000, *map(json.dumps, entries)]


def test_damaged_costs_are_measured_again(
    model: SpeculativeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "agree", lambda _before, _after: True)
    costs = load_costs(model, tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(cost_store, "calibrate", lambda *_: costs)
    for text in damages(costs):
        path.write_text(text)
        assert load_costs(model, tmp_path) is costs
    path.unlink()
    os.mkfifo(path)
    assert load_costs(model, tmp_path) is costs


def test_without_a_home_directory_costs_are_kept_in_memory(
    model: SpeculativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cost_store.Path, "home", homeless)
    assert cache_directory() is None
    monkeypatch.setattr(cost_store, "cache_directory", cache_directory)
    assert load_costs(model).sizes[0] == 1


def test_calibration_tells_how_far_it_is(model: SpeculativeModel) -> None:
    told: list[tuple[int, int]] = []
    costs = calibrate(model, lambda done, total: told.append((done, total)))
    assert costs.sizes == SIZES[: len(costs.sizes)]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert {5, 10, 13, 20, 32} <= set(SIZES)


def test_costs_are_measured_at_a_texts_own_context(
    model: SpeculativeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text's cache is used and left as it was; what was measured is stored."""
    monkeypatch.setattr(measuring, "agree", lambda _before, _after: True)
    monkeypatch.setattr(measuring, "LONGEST", math.inf)
    costs = calibrate(model)
    prompt = models.prompt_of(500)
    cache = model.make_cache()
    for _ in model.target.fill(prompt, cache):
        pass
    there = measure_there(model, costs, cache, tmp_path)
    assert there.contexts == (costs.contexts[0], 500)
    assert list(cache.tokens) == prompt
    assert load_costs(model, tmp_path) == there


@pytest.mark.parametrize("length", [200, 540])
def test_costs_that_were_wrong_are_brought_up_to_date_at_every_context(
    model: SpeculativeModel, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """What is measured near a context that is known would make a slope with it."""
    monkeypatch.setattr(measuring, "LONGEST", math.inf)
    costs = costs_of(CPU).with_context(512, {1: 1.1, 8: 1.5, 32: 2.6})
    cache = model.make_cache()
    for _ in model.target.fill(models.prompt_of(length), cache):
        pass
    again = calibrate_there(model, costs, cache)
    assert again.contexts == costs.contexts
    for size in (1, 8, 32):
        shares = {
            again.verify_seconds(size, at) / costs.verify_seconds(size, at) for at in (64, 512, 900)
        }
        assert max(shares) == pytest.approx(min(shares))


def test_a_context_where_calls_take_long_is_measured_as_far_as_it_was(
    model: SpeculativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "time_in_turns", lambda *_, **__: Timings((1.0, 2.0), False))
    cache = model.make_cache()
    for _ in model.target.fill(models.prompt_of(500), cache):
        pass
    there = calibrate_there(model, costs_of(CPU), cache)
    assert there.contexts == (64, 500)
    assert there.doubtful
    assert there.verify_seconds(1, 500) == pytest.approx(1.0)


def test_doubtful_costs_are_not_replaced_by_those_that_were_measured_again(
    model: SpeculativeModel, tmp_path: Path
) -> None:
    """They were measured again since they do not hold: the next start measures."""
    save_costs(model, costs_of(CPU), tmp_path)
    save_costs(model, costs_of(CPU).doubted(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "a further context's leave those that hold"
    save_costs(model, costs_of(CPU).doubted(), tmp_path, outdated=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"draft_start": -1.0}, {"around": -0.1}, {"replay": -0.1}, {"plain": [10**400]}]
)
def test_stored_costs_that_no_machine_has_are_measured_again(
    model: SpeculativeModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    save_costs(model, costs_of(CPU), tmp_path)
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    stored["costs"] |= change
    path.write_text(json.dumps(stored))
    assert cost_store._read(path) is None


def test_costs_between_and_beyond_contexts() -> None:
    costs = costs_of(CPU).with_context(4096, {1: 1.5, 8: 3.0, 32: 9.0})
    assert costs.verify_seconds(8, 4096) == pytest.approx(3.0)
    assert costs.verify_seconds(8, 2080) == pytest.approx((3.0 + costs.verify_seconds(8, 64)) / 2)
    beyond = costs.verify_seconds(8, 8128)
    assert beyond == pytest.approx(2 * 3.0 - costs.verify_seconds(8, 64))
    assert costs.step_seconds(None, 4096) == pytest.approx(1.5)
    assert CostModel.from_dict(costs.to_dict()) == costs
    assert costs.knows(4096)
    assert costs.knows(12000)
    assert not costs.knows(16000)


def test_a_first_context_measured_beside_another_program_leaves_no_time_below_zero() -> None:
    """At a longer context all is faster: what was measured before was not this machine's."""
    slow = costs_of(CPU).scaled({1: 6.0, 8: 2.0, 32: 3.0})
    there = slow.with_context(4096, {1: 1.1, 8: 1.5, 32: 2.6})
    assert there.contexts == (64, 4096)
    for context in there.contexts:
        assert there.verify_seconds(1, context) == pytest.approx(1.1)
        assert there.verify_seconds(8, context) == pytest.approx(1.5)
        assert there.verify_seconds(4, context) > 1.0
    assert there.plain == pytest.approx((1.1, 1.1))
    assert CostModel.from_dict(there.to_dict()) == there, "it can be read again"


def test_costs_that_changed_are_scaled_by_size() -> None:
    costs = costs_of(CPU)
    slower = costs.scaled({1: 1.0, 32: 2.0})
    assert slower.verify_seconds(1, 64) == costs.verify_seconds(1, 64)
    assert slower.verify_seconds(32, 64) == pytest.approx(2 * costs.verify_seconds(32, 64))
    assert 1.0 < slower.verify_seconds(16, 64) / costs.verify_seconds(16, 64) < 2.0


def test_nobody_waits_long_for_a_slow_machine(clock: Clock) -> None:
    """What took too long to be timed again is doubtful, and so is not stored."""
    timed = time_in_turns(clock.calls([lambda _: 4.0, lambda _: 8.0]))
    assert timed.seconds == pytest.approx((4.0, 8.0))
    assert timed.doubtful
    assert clock.now < 25.0


def test_a_context_that_was_measured_beside_another_program_is_left_out() -> None:
    """Nothing makes a forward after a longer text faster than after a shorter one."""
    costs = costs_of(CPU)
    slow = {n: 3.0 * costs.verify_seconds(n, 64) for n in (1, 4, 8, 16, 32)}
    quiet = {n: 1.2 * costs.verify_seconds(n, 64) for n in (1, 4, 8, 16, 32)}
    loaded = costs.with_context(512, slow)
    assert loaded.contexts == (64, 512)
    found = loaded.with_context(4096, quiet)
    assert found.contexts == (64, 4096)
    assert found.verify_seconds(1, 512) < 1.1
    assert found.with_context(512, slow).contexts == (64, 4096)
    near = {n: 1.1 * quiet[n] for n in quiet}
    assert found.with_context(512, near).contexts == (64, 512, 4096), "timings differ by so much"


def compiled(seconds: float, compiler: float) -> Callable[[int], float]:
    """A call that waits for a compiler the first time."""
    return lambda n: compiler if n == 0 else seconds


def test_a_compiler_says_nothing_of_what_calls_cost(clock: Clock) -> None:
    """The first kernel is there, those for more rows are compiled when they are first used."""
    calls = [compiled(0.005, 0.005), *(compiled(0.006, 0.4) for _ in range(5))]
    timed = time_in_turns(clock.calls(calls), hopeless=10.0)
    assert timed.seconds == pytest.approx((0.005, *[0.006] * 5)), "none is hopeless"
    assert not timed.doubtful


def test_nobody_waits_for_a_compiler_size_by_size(clock: Clock) -> None:
    """Sizes that would have to wait are left out, and what is known is not stored."""
    told: list[int] = []
    calls = [compiled(0.005, 9.0) for _ in SIZES]
    timed = time_in_turns(clock.calls(calls), hopeless=10.0, note=told.append)
    assert timed.seconds == pytest.approx([0.005] * 3)
    assert timed.doubtful
    assert clock.now < 30.0
    assert sum(told) == timings_of(len(SIZES)), "the bar comes to its end"


def test_widths_after_what_takes_too_long_are_left_out(
    model: SpeculativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft of each width is compiled by itself on some devices."""
    now = [0.0]

    def slow(*_: Any) -> tuple[float, float, bool]:
        now[0] += 15.0
        return 0.001, 0.002, False

    monkeypatch.setattr(calibration, "_time_draft", slow)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    levels, _, doubtful = calibration._time_drafts(model, lambda _: None)
    assert sorted(levels) == [1, 2]
    assert doubtful
