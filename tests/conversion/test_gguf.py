"""GGUF files of every family and type become the models that mlx-lm computes with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf_conversions import IDS, configured, converted, logits, refusal
from gguf_models import (
    HIDDEN,
    KINDS,
    TOKENS,
    expected_weights,
    gguf,
    make_model,
    quantised,
    stored_tensors,
    tiny_gguf,
    write_gguf,
)
from mlx.utils import tree_unflatten

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf, write_model
from mlx_redrafter.gguf.blocks import dequantise, keep
from mlx_redrafter.text.places import silent

# A Mistral is a Llama to mlx-lm, and these families' norms have another key.
WRITTEN_OTHERWISE = {
    "mistral": {"model_type"},
    **{name: {"rms_norm_eps"} for name in ("starcoder2", "stablelm", "command-r")},
}
KEPT = ["Q4_0", "Q4_1", "Q8_0"]
OTHERS = ["F32", "F16", "BF16", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def expected_logits(name: str, stored: dict[str, Any]) -> np.ndarray:
    model = make_model(KINDS[name])
    model.update(tree_unflatten(expected_weights(KINDS[name], stored)))
    return np.array(model(IDS))


@pytest.mark.parametrize("name", KINDS)
def test_families_compute_what_mlx_lm_computes(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    stored = stored_tensors(kind, make_model(kind), "F32")
    out = converted(write_gguf(tmp_path / "tiny.gguf", kind, stored))
    config = configured(out)
    others = {key for key, value in kind.config.items() if config.get(key, "missing") != value}
    assert others == WRITTEN_OTHERWISE.get(name, set())
    assert np.abs(logits(out) - expected_logits(name, stored)).max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("kind", KEPT)
def test_block_types_of_mlx_are_kept_in_every_family(tmp_path: Path, name: str, kind: str) -> None:
    stored = stored_tensors(KINDS[name], make_model(KINDS[name]), kind)
    out = converted(write_gguf(tmp_path / "tiny.gguf", KINDS[name], stored), dtype=mx.float32)
    config = configured(out)
    assert config["quantization"]["bits"] == (8 if kind == "Q8_0" else 4)
    assert config["quantization"]["group_size"] == 32
    assert np.abs(logits(out) - expected_logits(name, stored)).max() < 1e-3


@pytest.mark.parametrize("kind", KEPT)
def test_kept_blocks_hold_the_same_numbers_bit_for_bit(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(0, 1, (48, 256)).astype(np.float32)
    tensor = quantised("x", values, kind)
    file = write_gguf(tmp_path / "x.gguf", KINDS["llama"], {"x": tensor})
    kept = keep(read_gguf(file).tensors["x"])
    assert kept is not None
    scales, biases = (mx.array(a.astype(np.float32)) for a in (kept.scales, kept.biases))
    unpacked = mx.dequantize(mx.array(kept.weight), scales, biases, 32, kept.bits)
    expected = gguf.dequantize(tensor.data, tensor.type)
    assert np.array_equal(np.array(unpacked), expected)
    assert kept.scales.dtype == np.float16
    # The same integers, not only the same products.
    integers = mx.dequantize(
        mx.array(kept.weight), mx.ones_like(scales), mx.zeros_like(biases), 32, kept.bits
    )
    assert len(np.unique(np.array(integers))) > (100 if kept.bits == 8 else 15)


@pytest.mark.parametrize("kind", KEPT + OTHERS)
def test_every_type_is_read_as_the_gguf_package_reads_it(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(0, 1, (12, 512)).astype(np.float32)
    tensor = quantised("x", values, kind)
    assert tensor.type.name == kind
    file = write_gguf(tmp_path / "x.gguf", KINDS["llama"], {"x": tensor})
    found = dequantise(read_gguf(file).tensors["x"])
    assert np.array_equal(found, gguf.dequantize(tensor.data, tensor.type))


@pytest.mark.parametrize("kind", ["Q5_0", "Q4_K", "F16", "BF16"])
def test_other_types_are_dequantised(tmp_path: Path, kind: str) -> None:
    config = {**KINDS["llama"].config, "hidden_size": 256, "intermediate_size": 256}
    big = replace(KINDS["llama"], config=config)
    stored = stored_tensors(big, make_model(big), kind)
    out = converted(write_gguf(tmp_path / "tiny.gguf", big, stored))
    written = configured(out)
    assert "quantization" not in written
    assert written["torch_dtype"] == ("bfloat16" if kind == "BF16" else "float16")
    model = make_model(big)
    model.update(tree_unflatten(expected_weights(big, stored)))
    exact = converted(write_gguf(tmp_path / "again.gguf", big, stored), dtype=mx.float32)
    assert np.abs(logits(exact) - np.array(model(IDS))).max() < 1e-4


def test_a_file_of_several_types_keeps_each_layer_as_it_is(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), "Q4_1")
    embeddings = next(n for n in stored if "embed_tokens" in n)
    down = "model.layers.1.mlp.down_proj.weight"
    model = dict(expected_weights(kind, stored_tensors(kind, make_model(kind), "F32")))
    stored[embeddings] = quantised(stored[embeddings].name, np.array(model[embeddings]), "Q8_0")
    stored[down] = quantised(stored[down].name, np.array(model[down]), "F16")
    out = converted(write_gguf(tmp_path / "tiny.gguf", kind, stored))
    entry = configured(out)["quantization"]
    assert entry["bits"] == 4
    assert entry["model.embed_tokens"]["bits"] == 8
    loaded = dict(mlx_lm.load(str(out))[0].named_modules())
    assert loaded["model.embed_tokens"].bits == 8
    assert not hasattr(loaded["model.layers.1.mlp.down_proj"], "bits")
    assert loaded["model.layers.0.mlp.down_proj"].scales.dtype == mx.float16


def test_gemma_is_not_put_into_float16(tmp_path: Path) -> None:
    for matrix, dtype in (("Q8_0", "float32"), ("F16", "bfloat16")):
        out = converted(tiny_gguf(tmp_path / f"{matrix}.gguf", "gemma2", matrix))
        assert configured(out)["torch_dtype"] == dtype


SLIDING, FULL = "sliding_attention", "full_attention"


def test_olmo3_goes_by_the_name_of_olmo2(tmp_path: Path) -> None:
    kinds = [FULL, SLIDING, SLIDING]
    config = {
        **KINDS["olmo2"].config,
        "model_type": "olmo3",
        "num_hidden_layers": 3,
        "sliding_window": 4,
        "layer_types": kinds,
        "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        },
    }  # fmt: skip
    keys = {
        "attention.sliding_window": 4,
        "attention.sliding_window_pattern": [kind == SLIDING for kind in kinds],
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    kind = replace(KINDS["olmo2"], config=config, keys=keys)
    stored = stored_tensors(kind, make_model(kind), "F32")
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored))
    assert configured(out)["layer_types"] == kinds
    assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4


@pytest.mark.parametrize(("pattern", "period"), [({}, 4), ({"pattern": 2}, 2)])
def test_olmo3_without_a_list_of_its_layers(
    tmp_path: Path, pattern: dict[str, int], period: int
) -> None:
    keys = {"attention.sliding_window": 4}
    keys |= {f"attention.sliding_window_{key}": value for key, value in pattern.items()}
    config = {**KINDS["olmo2"].config, "num_hidden_layers": 8}
    kind = replace(KINDS["olmo2"], config=config, keys=keys)
    stored = stored_tensors(kind, make_model(kind), "F32")
    found = configured(converted(write_gguf(tmp_path / "t.gguf", kind, stored)))
    wanted = [*[SLIDING] * (period - 1), FULL] * (8 // period)
    assert (found["model_type"], found["layer_types"]) == ("olmo3", wanted)


@pytest.mark.parametrize(
    "keys",
    [{"window": 0}, {"window": 4, "window_pattern": [False, False]}],
    ids=["no window", "no layer sees it"],
)
def test_without_windows_it_is_olmo2(tmp_path: Path, keys: dict[str, Any]) -> None:
    own = {f"attention.sliding_{key}": value for key, value in keys.items()}
    found = configured(converted(tiny_gguf(tmp_path / "t.gguf", "olmo2", "F32", **own)))
    assert found["model_type"] == "olmo2"


@pytest.mark.parametrize("pattern", [[True], [True, False, True]])
def test_a_pattern_for_other_layers_is_named(tmp_path: Path, pattern: list[bool]) -> None:
    keys = {"attention.sliding_window": 4, "attention.sliding_window_pattern": pattern}
    text = refusal(tiny_gguf(tmp_path / "t.gguf", "olmo2", "F32", **keys))
    assert "attention.sliding_window_pattern" in text


def test_norms_of_each_head_are_rows_of_one_tensor(tmp_path: Path) -> None:
    config = {**KINDS["stablelm"].config, "qk_layernorm": True}
    kind = replace(KINDS["stablelm"], config=config)
    stored = stored_tensors(kind, make_model(kind), "F32")
    assert stored["model.layers.0.self_attn.k_layernorm.weight"].data.shape == (2, 16)
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored))
    assert np.abs(logits(out) - np.array(make_model(kind)(IDS))).max() < 1e-4


def test_logits_that_mlx_lm_would_not_cap_are_refused(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", "gemma3", "F32", final_logit_softcapping=3.0)
    assert "final_logit_softcapping" in refusal(file)


def test_shards_are_one_model(tmp_path: Path) -> None:
    kind = KINDS["qwen2"]
    stored = stored_tensors(kind, make_model(kind), "Q8_0")
    names = list(stored)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        write_gguf(tmp_path / f"m-{number:05d}-of-00002.gguf", kind, {n: stored[n] for n in part})
    out = tmp_path / "out"
    out.mkdir()
    write_model(read_gguf(tmp_path / "m-00002-of-00002.gguf"), out, silent, dtype=mx.float32)
    assert np.abs(logits(out) - expected_logits("qwen2", stored)).max() < 1e-3
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(RedrafterError, match="m-00001-of-00002"):
        read_gguf(tmp_path / "m-00002-of-00002.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00001.gguf"])
def test_shards_that_were_renamed_are_told_to_be_some(tmp_path: Path, name: str) -> None:
    file = tiny_gguf(tmp_path / name, matrix_type="F32", **{"split.count": 3})
    assert "is one of 3 shards" in refusal(file)


def test_a_file_that_is_its_only_shard_is_a_model(tmp_path: Path) -> None:
    converted(tiny_gguf(tmp_path / "t.gguf", matrix_type="F32", **{"split.count": 1}))


def test_special_tokens_and_template(tmp_path: Path) -> None:
    out = converted(tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=0))
    _, tokenizer = mlx_lm.load(str(out))
    assert set(tokenizer.eos_token_ids) == {0, 2}
    assert tokenizer.has_chat_template
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the 123"}], add_generation_prompt=True
    )
    assert [TOKENS[i] for i in ids[:1]] == ["<|im_start|>"]
    assert tokenizer.decode(ids).startswith("<|im_start|>user\nthe 123<|im_end|>")


def test_rows_beyond_the_vocabulary_are_kept(tmp_path: Path) -> None:
    config = {**KINDS["llama"].config, "vocab_size": len(TOKENS) + 10}
    kind = replace(KINDS["llama"], config=config)
    stored = stored_tensors(kind, make_model(kind), "F32")
    out = converted(write_gguf(tmp_path / "t.gguf", kind, stored))
    assert logits(out).shape[-1] == len(TOKENS) + 10
    assert configured(out)["hidden_size"] == HIDDEN


# Families that transformers reads from GGUF by itself, with what it takes for granted.
TRANSFORMERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "mistral": ({}, {}),
    "llama-tied": ({}, {}),
    "qwen2": ({}, {}),
    "qwen3": ({"head_dim": 128}, {"attention.key_length": 128}),
    "qwen3moe": (
        {"head_dim": 128, "moe_intermediate_size": 768},
        {"attention.key_length": 128, "expert_feed_forward_length": 768},
    ),
    "gemma2": (
        {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_theta": 10000.0},
        {"attention.key_length": 256},
    ),
    "gemma3": (
        {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_theta": 1e6},
        {"attention.key_length": 256},
    ),
    "phi3": ({}, {}),
    "starcoder2": ({"rope_theta": 10000.0}, {}),
    "stablelm": (
        {"use_qkv_bias": False, "partial_rotary_factor": 0.25, "rope_theta": 10000.0},
        {"rope.dimension_count": 4},
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_reads_the_same_model_from_the_file(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config, keys = TRANSFORMERS[name]
    kind = KINDS[name]
    kind = replace(kind, config={**kind.config, **config}, keys={**kind.keys, **keys})
    file = write_gguf(tmp_path / "t.gguf", kind, stored_tensors(kind, make_model(kind), "F32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="t.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = model(torch.tensor(np.array(IDS))).logits.numpy()
    # Its Starcoder 2 takes another approximation of GELU.
    assert np.abs(logits(converted(file)) - expected).max() < (
        2e-3 if name == "starcoder2" else 2e-4
    )
