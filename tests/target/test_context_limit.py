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


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_the_limit_has_several_names(key: str) -> None:
    assert context_limit({key: 200}) == 200
    assert context_limit({"text_config": {key: 200}}) == 200


def test_only_what_is_stated_is_a_limit() -> None:
    """mlx-lm's defaults of keys that a config.json leaves out say nothing of the model."""
    assert context_limit({"model_type": "mamba2"}) is None
    assert context_limit({"max_position_embeddings": True}) is None
    assert SpeculativeModel(architectures.build("llama")).context_limit is None


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        (None, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 64),
        ({"type": "linear", "factor": 2.0}, 128),
        ({"type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}, 64),
        ({"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8}, 64),
        ({"type": "longrope", "factor": 32.0}, 64),
        ({"type": "longrope", "factor": 32.0, "original_max_position_embeddings": 8}, 64),
        ({"type": "deepseek_yarn", "factor": 40, "original_max_position_embeddings": 4}, 160),
        ({"type": "mrope", "rope_type": "yarn", "factor": 4.0}, 64),
        ({"factor": 4.0, "original_max_position_embeddings": 64}, 64),
        ({"type": ["yarn"], "factor": 4.0}, 64),
        ({"type": "yarn", "factor": float("nan")}, 64),
        ({"type": "yarn", "factor": "4"}, 64),
        ("yarn", 64),
    ],
)
def test_scaled_positions_reach_further(scaling: Any, limit: int) -> None:
    config = {"max_position_embeddings": 64, "rope_scaling": scaling}
    assert context_limit(config) == limit
    assert context_limit({"max_position_embeddings": 64, "rope_parameters": scaling}) == limit


def test_gemma_3_states_the_scaled_length() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    config = {"model_type": "gemma3_text", "max_position_embeddings": 64, "rope_scaling": scaling}
    assert context_limit(config) == 64


def test_recurrent_state_has_no_limit_and_a_table_of_positions_is_one() -> None:
    stated = {"max_position_embeddings": 64}
    assert SpeculativeModel(architectures.build("mamba"), config=stated).context_limit is None
    assert SpeculativeModel(architectures.build("qwen3_next"), config=stated).context_limit == 64
    gpt2 = SpeculativeModel(architectures.build("gpt2"), config={"n_positions": 10**6})
    assert gpt2.context_limit == gpt2.target.max_positions


def test_a_limit_of_ones_own_takes_its_place_but_for_a_table_of_positions() -> None:
    llama = SpeculativeModel(architectures.build("llama"), config={"max_position_embeddings": 64})
    assert [llama.room(asked) for asked in (None, 10, 1000)] == [64, 10, 1000]
    gpt2 = SpeculativeModel(architectures.build("gpt2"))
    table = gpt2.target.max_positions
    assert table is not None
    assert [gpt2.room(asked) for asked in (None, 10, 10 * table)] == [table, 10, table]


def test_calibration_stays_within_the_limit() -> None:
    model = SpeculativeModel(architectures.build("llama"), config={"max_seq_len": 200})
    (context,) = contexts_of(model)
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
    config = {"max_position_embeddings": limit}
    model = SpeculativeModel(architectures.build("llama"), config=config)
    verify = model.target.verify

    def timed(tree: DraftTree, cache: PromptCache, *more: Any, **named: Any) -> Any:
        calls.append(len(tree))
        now[0] += seconds(len(calls), len(tree))
        return verify(tree, cache, *more, **named)

    monkeypatch.setattr(model.target, "verify", timed)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    return calibration.calibrate(model), calls


def test_a_slow_machine_is_measured_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls of each forward, nothing hopeless."""
    measured, calls = calibrated(monkeypatch, 4096, lambda _, size: 0.1 * size)
    assert measured.contexts == (64,)
    assert measured.sizes[-1] == 12  # two sizes that much dearer than one token's
    assert all(calls.count(size) == 3 for size in measured.sizes[1:])
    assert measured.verify_seconds(8, 64) == pytest.approx(0.8)


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
