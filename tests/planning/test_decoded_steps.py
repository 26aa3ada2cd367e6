"""What a step takes beyond its parts: a clock that the test moves, a loop that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from planning_machines import CPU, costs_of

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.step import DecodedToken, StepRecord
from mlx_redrafter.planning import calibration, decoded_steps
from mlx_redrafter.planning.calibration import calibrate
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.decoded_steps import time_around, time_plain
from mlx_redrafter.tree import HostTree

COSTS = costs_of(CPU)


class Text:
    """A cache of 64 tokens."""

    def __init__(self) -> None:
        self.tokens = list(range(64))

    def __len__(self) -> int:
        return len(self.tokens)

    def rewind(self, length: int) -> None:
        del self.tokens[length:]


class Machine:
    """A machine on which steps take more than their parts; stands in for a model, too.

    Args:
        around: Seconds more.
        slow: How many times as slow as when its parts were timed it is by now.
    """

    drafts = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch, around: float, slow: float = 1.0):
        self.around, self.slow, self.now, self.steps = around, slow, 0.0, 0
        self.prepared: object | None = object()
        monkeypatch.setattr(decoded_steps.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(decoded_steps, "decode", self.decode)

    def agreed(self, seconds: float) -> float:
        return seconds

    def forward(self, rows: int) -> Callable[[], None]:
        def call() -> None:
            self.now += self.slow * COSTS.verify_seconds(rows, 64)

        return call

    def decode(
        self, _: Any, prompt: list[int], config: DecodingConfig, *, cache: Text
    ) -> Iterator[DecodedToken]:
        """Steps of which every other one is accepted whole, and one at the start is slow."""
        shape = config.beam
        yield DecodedToken(0, "own", None, None)
        made = 1
        while made < config.max_tokens:
            count = 1 + shape.nodes
            path = tuple(range(count if self.steps % 2 else 1))
            numbers = tuple(range(count))
            tree = HostTree(numbers, tuple(n - 1 for n in numbers), (0.0,) * count)
            step = StepRecord(tree, numbers, path)
            seconds = COSTS.step_seconds(shape, 64) + self.around
            self.now += self.slow * seconds * (10 if made == 1 else 1)
            self.steps += 1
            for token in path:
                made += 1
                cache.tokens.append(token)
                yield DecodedToken(token, "own", None, step)


def around_of(machine: Machine, costs: CostModel = COSTS) -> float:
    cache: Any = Text()
    model: Any = machine
    made = time_around(model, cache, costs, machine.forward)
    assert len(cache) == 64
    return made


@pytest.mark.parametrize("slow", [0.5, 1.0, 3.0])
def test_what_steps_take_beyond_their_parts(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """However fast the machine is by now, against the time when the parts were timed."""
    assert around_of(Machine(monkeypatch, 0.002, slow)) == pytest.approx(0.002)


def test_it_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around_of(Machine(monkeypatch, -0.001)) == 0.0


def test_without_a_head_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.002)
    machine.prepared = None
    assert around_of(machine) == 0.0
    assert machine.steps == 0


def test_where_no_draft_can_pay_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.002)
    assert around_of(machine, costs_of(lambda n: float(n))) == 0.0
    assert machine.steps == 0


def test_slow_steps_are_timed_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.0)
    around_of(machine, COSTS.scaled({1: 0.01}))
    many = machine.steps
    machine.steps = 0
    around_of(machine)  # whose plain step takes a second
    assert machine.steps < many / 3


def test_it_counts_in_every_step_that_checks_more_than_a_root() -> None:
    costs, shape = replace(COSTS, around=0.002), BeamShape(1, 3)
    before, after = COSTS.step_seconds(shape, 64), costs.step_seconds(shape, 64)
    assert after - before == pytest.approx(0.002)
    assert costs.check_seconds(4, 64) - COSTS.check_seconds(4, 64) == pytest.approx(0.002)
    for seconds in (CostModel.verify_seconds, CostModel.check_seconds):
        assert seconds(costs, 1, 64) == seconds(COSTS, 1, 64)
    assert costs.step_seconds(None, 64) == COSTS.step_seconds(None, 64)
    assert costs.scaled({1: 2.0}).around == pytest.approx(0.004)
    assert CostModel.from_dict(costs.to_dict()) == costs


def test_a_models_steps_are_timed_and_its_text_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SpeculativeModel(models.shared("llama"), models.build_drafter())
    cache = model.make_cache()
    for _ in model.target.fill(list(range(20)), cache):
        pass
    assert time_plain(model, cache) > 0
    assert cache.tokens == list(range(20))
    assert calibrate(SpeculativeModel(models.shared("llama"))).around == 0.0
    monkeypatch.setattr(calibration, "time_around", lambda *_: 0.002)
    assert calibrate(model).around == 0.002
