"""Scalings of positions in GGUF files are those of the models that they become, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_conversions import IDS, configured, converted, logits, refusal
from gguf_models import CONTEXT, KINDS, Kind, make_model, stored_tensors, tiny_gguf, write_gguf

from mlx_redrafter.gguf.rope import llama3_factors

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_factors(scaling: dict[str, Any], dimensions: int, base: float) -> np.ndarray:
    """As llama.cpp's converter writes them."""
    found = []
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    for i in range(0, dimensions, 2):
        length = 2 * np.pi * base ** (i / dimensions)
        if length < high:
            found.append(1.0)
        elif length > low:
            found.append(scaling["factor"])
        else:
            gap = scaling["high_freq_factor"] - scaling["low_freq_factor"]
            at = scaling["original_max_position_embeddings"] / length - scaling["low_freq_factor"]
            found.append(1 / ((1 - at / gap) / scaling["factor"] + at / gap))
    return np.array(found, np.float32)


@pytest.mark.parametrize(
    "changes",
    [{}, {"factor": 8.0}, {"original_max_position_embeddings": 512, "high_freq_factor": 8.0},
     {"low_freq_factor": 2.0, "original_max_position_embeddings": 4096}],
    ids=["3.2", "3.1", "512", "low"],
)  # fmt: skip
def test_llama3_scaling_is_recovered(tmp_path: Path, changes: dict[str, Any]) -> None:
    scaling = {**LLAMA3, **changes}
    base = 500000.0
    config = {**KINDS["llama"].config, "head_dim": 64, "rope_theta": base, "rope_scaling": scaling}
    kind = replace(KINDS["llama"], config=config, keys={"attention.key_length": 64})
    stored = stored_tensors(kind, make_model(kind), "F32")
    factors = rope_factors(scaling, 64, base)
    assert 1 < len(np.unique(factors)) < 32
    file = write_gguf(tmp_path / "t.gguf", kind, stored, {"rope_freqs.weight": factors})
    out = converted(file)
    found = configured(out)["rope_scaling"]
    inverse = base ** (-np.arange(0, 64, 2) / 64) / (2 * np.pi)
    assert np.allclose(llama3_factors(found, inverse), factors, rtol=1e-3)
    model = make_model(kind)
    assert np.abs(logits(out) - np.array(model(IDS))).max() < 1e-3


def test_yarn_and_linear_scaling(tmp_path: Path) -> None:
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    yarn["rope.scaling.original_context_length"] = 32
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    wanted: dict[str, dict[str, Any]] = {
        "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "linear": {"rope_type": "linear", "factor": 4.0},
    }
    for name, keys in (("yarn", yarn), ("linear", linear)):
        config = {**KINDS["qwen2"].config, "rope_scaling": wanted[name]}
        kind = replace(KINDS["qwen2"], config=config, keys=keys)
        stored = stored_tensors(kind, make_model(kind), "F32")
        out = converted(write_gguf(tmp_path / f"{name}.gguf", kind, stored))
        assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4


def test_longrope(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    long, short = (rng.uniform(1, 4, 8).astype(np.float32) for _ in range(2))
    config = {
        **KINDS["phi3"].config,
        "max_position_embeddings": 4 * CONTEXT,
        "original_max_position_embeddings": CONTEXT,
        "rope_scaling": {"type": "longrope", "long_factor": long.tolist(),
                         "short_factor": short.tolist()},
    }  # fmt: skip
    kind = replace(KINDS["phi3"], config=config)
    stored = stored_tensors(kind, make_model(kind), "F32")
    extra = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored, extra))
    assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4


YARN: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
LINEAR: dict[str, Any] = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}


def scaled(name: str, scaling: dict[str, Any], keys: dict[str, Any], **config: Any) -> Kind:
    """A family whose positions are scaled as ``scaling`` says, and as ``keys`` say in GGUF."""
    kind = KINDS[name]
    config = {**kind.config, **config, "rope_scaling": scaling}
    return replace(kind, config=config, keys={**kind.keys, **keys})


def scaling_of(path: Path, **keys: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = configured(converted(tiny_gguf(path, "llama", "F32", **keys)))[
        "rope_scaling"
    ]
    return found


def test_yarn_with_parameters_of_its_own(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "mscale": 0.5,
    }
    keys = {
        **YARN,
        "rope.scaling.original_context_length": 512,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_beta_slow": 2.0,
        "rope.scaling.yarn_attn_factor": 0.1 * 0.5 * float(np.log(4.0)) + 1,
    }
    kind = scaled("qwen2", scaling, keys, rope_theta=100.0)
    stored = stored_tensors(kind, make_model(kind), "F32")
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored))
    assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4
    for left in scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}:
        less = scaled(
            "qwen2", {k: v for k, v in scaling.items() if k != left}, {}, rope_theta=100.0
        )
        assert np.abs(logits(out) - np.array(make_model(less)(IDS))).max() > 1e-3


@pytest.mark.parametrize("said", [-1.0, 1.0])
def test_yarn_extrapolates_as_mlx_lm_does_where_it_says_so(tmp_path: Path, said: float) -> None:
    keys = {**YARN, "rope.scaling.yarn_ext_factor": said}
    found = scaling_of(tmp_path / "t.gguf", **keys)
    assert found == scaling_of(tmp_path / "plain.gguf", **YARN)


@pytest.mark.parametrize(
    ("key", "value"),
    [("yarn_ext_factor", 0.0), ("yarn_log_multiplier", 0.1), ("attn_factor", 2.0)],
)
def test_parameters_that_mlx_lm_has_not_are_named(tmp_path: Path, key: str, value: float) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", **{**YARN, f"rope.scaling.{key}": value})
    assert f"'llama.rope.scaling.{key}' {value:g}" in refusal(file)


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear(tmp_path: Path, key: str) -> None:
    found = scaling_of(tmp_path / "t.gguf", **{key: 4.0})
    assert found == {"type": "linear", "rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.factor": 0.0},
        {"rope.scaling.factor": 1.0},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {**YARN, "rope.scaling.factor": 1.0},
    ],
    ids=lambda keys: str(keys)[:50],
)
def test_what_scales_nothing_is_no_scaling(tmp_path: Path, keys: dict[str, Any]) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", "qwen3moe", "F32", **keys)
    assert "rope_scaling" not in configured(converted(file))


@pytest.mark.parametrize("keys", [YARN, LINEAR], ids=["yarn", "linear"])
@pytest.mark.parametrize(
    "name",
    ["mixtral", "qwen2moe", "qwen3moe", "gemma", "gemma2", "starcoder2", "stablelm", "command-r"],
)
def test_scalings_that_mlx_lm_would_not_look_at_are_refused(
    tmp_path: Path, name: str, keys: dict[str, Any]
) -> None:
    text = refusal(tiny_gguf(tmp_path / "t.gguf", name, "F32", **keys))
    assert "scales its positions" in text or "rope_scaling" in text


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "smollm3", "granite", "qwen2", "qwen3", "gemma3", "seed_oss"]
)
def test_scalings_that_mlx_lm_computes_are_kept(tmp_path: Path, name: str) -> None:
    linear = {"type": "linear", "rope_type": "linear", "factor": 4.0}
    kind = scaled(name, linear, LINEAR)
    stored = stored_tensors(kind, make_model(kind), "F32")
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored))
    assert configured(out)["rope_scaling"] == linear
    assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4


def test_two_scalings_at_once_are_refused(tmp_path: Path) -> None:
    kind = replace(KINDS["llama"], keys=LINEAR)
    stored = stored_tensors(kind, make_model(kind), "F32")
    factors = {"rope_freqs.weight": rope_factors(LLAMA3, 16, 50000.0)}
    text = refusal(write_gguf(tmp_path / "t.gguf", kind, stored, factors))
    assert "scales its positions twice" in text


def test_texts_of_no_tokens_are_refused(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", context_length=0)
    assert "context_length' is 0" in refusal(file)
