"""How long a text a model was made for, and that calibration stays within it."""

from __future__ import annotations

from typing import Any

import architectures
import pytest

from mlx_redrafter import costs
from mlx_redrafter.costs import SIZES, contexts_of
from mlx_redrafter.limits import context_limit
from mlx_redrafter.model import SpeculativeModel
from mlx_redrafter.prompt_cache import PromptCache
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


def test_a_slow_machine_is_measured_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of each forward, no context that takes long to fill, nothing hopeless."""
    now, calls = [0.0], []
    model = SpeculativeModel(architectures.build("llama"))
    model.target.model.args.max_position_embeddings = 4096
    verify = model.target.verify

    def slowly(tree: DraftTree, cache: PromptCache) -> Any:
        now[0] += 0.3 * len(tree)
        calls.append(len(tree))
        return verify(tree, cache)

    monkeypatch.setattr(model.target, "verify", slowly)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    measured = costs.calibrate(model)
    assert measured.contexts == (64,)
    assert measured.sizes[-1] == 24  # that much dearer than one token's
    assert all(calls.count(size) == 2 for size in measured.sizes[1:])
    assert measured.verify_seconds(8, 64) == pytest.approx(2.4)
