"""Features on disk: whose they are, whether they are whole, and who may make them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from training_cases import make_rows
from training_files import TINY

from mlx_redrafter import Target
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import (
    DistillationConfig,
    TrainingCallback,
    compute_features,
    make_drafter,
    stored_features,
    train_drafter,
)
from models import build


def test_shards_that_were_cut_off_are_made_again(tmp_path):
    target = Target(build("llama"))
    rows = make_rows(12, length=30)
    drafter = make_drafter(target)
    config = DistillationConfig(top_k=8)
    each = {"target_sha256": "x", "shard_bytes": 3000}
    first = stored_features(tmp_path, target, drafter, rows, config, **each)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) > 2
    paths[1].write_bytes(paths[1].read_bytes()[:-7])
    paths[2].write_bytes(b"")
    plans = []
    again = stored_features(tmp_path, target, drafter, rows, config, announce=plans.append, **each)
    assert 0 < plans[0].missing_bytes < plans[0].total_bytes
    memory = compute_features(target, drafter, rows, config)
    anchors = memory.anchors
    for one, two in zip(again.batch(anchors, 3), memory.batch(anchors, 3), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3)
    assert first.hidden.shape == memory.hidden.shape


def test_shards_of_another_run_are_made_again(tmp_path):
    """Where a file system has no locks, a run's shards may come among those of another."""
    target, rows = Target(build("llama")), make_rows(12, length=30)
    drafter, config = make_drafter(target), DistillationConfig(top_k=8)
    each = {"target_sha256": "x", "shard_bytes": 3000}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    first = stored_features(ours, target, drafter, rows, config, **each)
    kept = np.array(first.log_probs[np.arange(first.log_probs.shape[0])])
    stored_features(theirs, target, drafter, rows, replace(config, temperature=3.0), **each)
    name = "features-00001.safetensors"
    shutil.copy(theirs / name, ours / name)
    plans = []
    again = stored_features(ours, target, drafter, rows, config, announce=plans.append, **each)
    assert 0 < plans[0].missing_bytes < plans[0].total_bytes
    np.testing.assert_array_equal(again.log_probs[np.arange(len(kept))], kept)
    shutil.copy(ours / "features-00002.safetensors", ours / name)
    stored_features(ours, target, drafter, rows, config, announce=plans.append, **each)
    assert plans[1].missing_bytes == plans[0].missing_bytes


def test_two_runs_cannot_make_features_in_one_directory(bundle, data, tmp_path):
    cache, refused = tmp_path / "cache", []

    class Other(TrainingCallback):
        def stage(self, name, done, total):
            if name == "target's features" and not refused:
                with pytest.raises(RedrafterError, match=r"Another training is .* in .*cache \("):
                    train_drafter(
                        bundle, data, tmp_path / "b", cache_features=cache, temperature=0.5,
                        overwrite=True, **TINY,
                    )  # fmt: skip
                refused.append(name)

    settings = {**TINY, "steps": 2, "cache_features": cache}
    train_drafter(bundle, data, tmp_path / "a", callback=Other(), **settings)
    assert refused
    assert not (tmp_path / "b").exists()
    assert not (cache / ".lock").exists()
    (cache / ".lock").touch()  # left by one that was killed
    (cache / "features.json").unlink()
    for shard in cache.glob("*.safetensors"):
        shard.unlink()
    train_drafter(bundle, data, tmp_path / "c", **settings)


def test_a_runs_own_directory_is_not_one_for_features(bundle, data, tmp_path):
    with pytest.raises(RedrafterError, match="holds other files and no features"):
        train_drafter(
            bundle, data, tmp_path / "out", cache_features=tmp_path / "out" / "training", **TINY
        )
