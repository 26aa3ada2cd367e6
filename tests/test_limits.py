"""How long a text a model was made for, and that calibration stays within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import architectures
import pytest

from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.planning import calibration
from mlx_redrafter.planning.calibration import SIZES, contexts_of
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.target.context_limit import context_limit
from mlx_redrafter.tree import DraftTree


@pytest.mark.parametrize(
    ("name", "key"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")]
)
def test_the_limit_has_several_names(name: str, key: str) -> None:
    model = architectures.build(name)
    setattr(model.args, key, 200)
    assert context_limit(model) == 200
    (context,) = contexts_of(SpeculativeModel(model))
    assert context + max(SIZES) <= 200


def calibrated(
    monkeypatch: pytest.MonkeyPatch, limit: int, seconds: Callable[[int, int], float]
) -> tuple[CostModel, list[int]]:
    """What is measured, and the sizes of all forwards, where time is theirs alone.

    Args:
        monkeypatch: Of the test.
        limit: The model's longest text.
        seconds: Of a forward, from how many there were and its size.
    """
    now, calls = [0.0], []
    model = SpeculativeModel(architectures.build("llama"))
    model.target.model.args.max_position_embeddings = limit
    verify = model.target.verify

    def timed(tree: DraftTree, cache: PromptCache) -> Any:
        calls.append(len(tree))
        now[0] += seconds(len(calls), len(tree))
        return verify(tree, cache)

    monkeypatch.setattr(model.target, "verify", timed)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    return calibration.calibrate(model), calls


def test_a_slow_machine_is_measured_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of each forward, no context that takes long to fill, nothing hopeless."""
    measured, calls = calibrated(monkeypatch, 4096, lambda _, size: 0.3 * size)
    assert measured.contexts == (64,)
    assert measured.sizes[-1] == 24  # that much dearer than one token's
    assert all(calls.count(size) == 2 for size in measured.sizes[1:])
    assert measured.verify_seconds(8, 64) == pytest.approx(2.4)


@pytest.mark.parametrize("stalled", [2, 3, 4, 8, 20])
def test_one_stall_is_no_reason_to_stop_measuring(
    stalled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger forwards are left out where they are hopeless, not where one call took long."""
    measured, _ = calibrated(
        monkeypatch, 200, lambda call, _: 0.002 + (0.060 if call == stalled else 0.0)
    )
    assert measured.sizes == SIZES
    assert measured.verify[0] == pytest.approx((0.002,) * len(SIZES))


def test_what_another_program_takes_for_a_while_is_not_in_the_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes take turns: a busy while is in a few rounds of each. Twelve rows may be the dearest."""
    true = {size: 0.001 * (5 if size == 12 else 2 + 0.01 * size) for size in SIZES}
    measured, _ = calibrated(
        monkeypatch, 200, lambda call, size: true[size] * (4 if 40 < call < 70 else 1)
    )
    assert measured.verify[0] == pytest.approx(tuple(true.values()))
