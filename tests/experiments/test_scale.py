"""experiments/scale.py: larger weights, the same function."""

import json
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest
from scripts import load_script

from mlx_redrafter import load, load_drafter

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("scale", monkeypatch)


def test_a_scaled_target_says_what_the_small_one_says(scale: ModuleType, tmp_path: Path) -> None:
    size = scale.scale(POCKET, tmp_path / "scaled", 6, 1536)
    small, large = load(POCKET)[0].target, load(tmp_path / "scaled")[0].target
    tokens = mx.array([[1, 5, 300, 2000, 7]])
    assert size > 1.4 * 10.1e6
    assert mx.allclose(small.teach(tokens)[0], large.teach(tokens)[0], atol=1e-3)


def test_a_widened_drafter_proposes_the_same(scale: ModuleType, tmp_path: Path) -> None:
    source = POCKET / "drafter"
    size = scale.widen_drafter(source, tmp_path, 512)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["exit_dim"] == 512
    small, large = load_drafter(source), load_drafter(tmp_path)
    small.set_dtype(mx.float32)
    large.set_dtype(mx.float32)
    hidden, state = mx.random.normal((2, 3, config["hidden_size"]), key=mx.random.key(0))
    assert mx.allclose(small.logits(hidden, state), large.logits(hidden, state), atol=1e-3)
    embeddings = mx.random.normal((3, config["hidden_size"]), key=mx.random.key(1))
    assert mx.array_equal(small.advance(embeddings, state), large.advance(embeddings, state))
    assert size > 1.3 * 1.7e6


def test_a_width_that_needs_no_projection_is_refused(scale: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not to 896"):
        scale.widen_drafter(POCKET / "drafter", tmp_path, 896)
