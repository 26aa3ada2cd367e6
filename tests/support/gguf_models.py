"""Tiny GGUF files of every family, written from mlx-lm models as llama.cpp's converter writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes

gguf = pytest.importorskip("gguf")

HIDDEN, FF, LAYERS, HEADS, KV, CONTEXT = 64, 96, 2, 4, 2, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokens() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


MERGES = ["t h", "th e", "Ġ t", "i n", "e r", "Ġ a", "1 2", "12 3", "e n", "Ġt h", "a n"]
TOKENS = [*SPECIAL, *byte_tokens(), *(merge.replace(" ", "") for merge in MERGES)]
VOCAB = len(TOKENS)

_BASE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": FF,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "rope_theta": 50000.0,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
_GEMMA = {**_BASE, "tie_word_embeddings": True, "head_dim": 32}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Kind:
    """A family: GGUF's name, mlx-lm's configuration, and keys of its own."""

    architecture: str
    config: dict[str, Any]
    keys: dict[str, Any]
    permuted: bool = False
    norm_offset: float = 0.0
    renamed: tuple[tuple[str, str], ...] = ()


_SWITCH = (("mlp.switch_mlp", "mlp.experts"),)
_MIXTRAL = (("block_sparse_moe.switch_mlp", "mlp.experts"),)
_SCALES = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0}
_SCALES |= {"residual_multiplier": 0.5, "logits_scaling": 2.0}
KINDS = {
    "llama": Kind("llama", {**_BASE, "model_type": "llama"}, {}, permuted=True),
    "mistral": Kind(
        "llama", {**_BASE, "model_type": "mistral", "head_dim": 32},
        {"attention.key_length": 32, "rope.dimension_count": 32}, permuted=True,
    ),
    "llama-tied": Kind(
        "llama", {**_BASE, "model_type": "llama", "tie_word_embeddings": True}, {}, permuted=True
    ),
    "llama-biased": Kind(
        "llama", {**_BASE, "model_type": "llama", "attention_bias": True}, {}, permuted=True
    ),
    "mixtral": Kind(
        "llama", {**_BASE, "model_type": "mixtral", "num_local_experts": 4},
        {"expert_count": 4, "expert_used_count": 2}, permuted=True, renamed=_MIXTRAL,
    ),
    "smollm3": Kind(
        "smollm3", {**_BASE, "model_type": "smollm3", "num_hidden_layers": 4}, {}, permuted=True
    ),
    "granite": Kind(
        "granite",
        {**_BASE, **_SCALES, "model_type": "granite", "attention_bias": False, "mlp_bias": False},
        {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5,
         "logit_scale": 2.0}, permuted=True,
    ),
    "qwen2": Kind("qwen2", {**_BASE, "model_type": "qwen2"}, {}),
    "qwen2moe": Kind(
        "qwen2moe",
        {**_BASE, **_MOE, "model_type": "qwen2_moe", "num_experts": 4,
         "shared_expert_intermediate_size": 64},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
         "expert_shared_feed_forward_length": 64}, renamed=_SWITCH,
    ),
    "qwen3": Kind(
        "qwen3", {**_BASE, "model_type": "qwen3", "head_dim": 32}, {"attention.key_length": 32}
    ),
    "qwen3moe": Kind(
        "qwen3moe",
        {**_BASE, **_MOE, "model_type": "qwen3_moe", "num_experts": 4, "head_dim": 32,
         "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32,
         "attention.key_length": 32}, renamed=_SWITCH,
    ),
    "gemma": Kind(
        "gemma", {**_GEMMA, "model_type": "gemma"}, {"attention.key_length": 32}, norm_offset=1.0
    ),
    "gemma2": Kind(
        "gemma2",
        {**_GEMMA, "model_type": "gemma2", "query_pre_attn_scalar": 32.0},
        {"attention.key_length": 32, "attn_logit_softcapping": 50.0,
         "final_logit_softcapping": 30.0, "attention.sliding_window": 64}, norm_offset=1.0,
    ),
    "gemma3": Kind(
        "gemma3",
        {**_GEMMA, "model_type": "gemma3_text", "query_pre_attn_scalar": 32, "sliding_window": 8,
         "num_hidden_layers": 7},
        {"attention.key_length": 32, "attention.sliding_window": 8}, norm_offset=1.0,
    ),
    "phi3": Kind(
        "phi3", {**_BASE, "model_type": "phi3"},
        {"rope.dimension_count": 16, "rope.scaling.original_context_length": CONTEXT,
         "attention.sliding_window": 0},
    ),
    "olmo2": Kind("olmo2", {**_BASE, "model_type": "olmo2"}, {}),
    "starcoder2": Kind(
        "starcoder2", {**_BASE, "model_type": "starcoder2", "tie_word_embeddings": True}, {}
    ),
    "stablelm": Kind(
        "stablelm",
        {**_BASE, "model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.5,
         "layer_norm_eps": 1e-5}, {"rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "command-r": Kind(
        "command-r", {**_BASE, "model_type": "cohere", "logit_scale": 0.25,
                      "tie_word_embeddings": True}, {"logit_scale": 0.25},
    ),
    "seed_oss": Kind("seed_oss", {**_BASE, "model_type": "seed_oss", "head_dim": 16}, {}),
}  # fmt: skip


def make_model(kind: Kind, seed: int = 0) -> nn.Module:
    """A model with random weights, larger than mlx's own so that every layer matters."""
    model_class, args_class = _get_classes(kind.config)
    model = model_class(args_class.from_dict(kind.config))
    rng = np.random.default_rng(seed)
    weights = [
        (name, mx.array(_random(rng, name, array.shape)))
        for name, array in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    if kind.config["model_type"] == "gemma3_text":
        model.sanitize({})  # ties the output rows where a checkpoint has none
    return model


def _random(rng: np.random.Generator, name: str, shape: Any) -> np.ndarray:
    if name.endswith("norm.weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.2, shape).astype(np.float32)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order in which the GGUF form of llama turns them: first of each half together."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + s * half + i for h in range(heads) for i in range(half) for s in (0, 1)]
    return rows[order]


@dataclass(frozen=True)
class Stored:
    """What was written of one parameter."""

    name: str
    data: np.ndarray
    type: Any


def stored_tensors(kind: Kind, model: nn.Module, matrix_type: str) -> dict[str, Stored]:
    """GGUF tensors by mlx-lm's parameter names."""
    layers = kind.config["num_hidden_layers"]
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == kind.architecture)
    names = gguf.get_tensor_name_map(arch, layers)
    found = {}
    parameters = {name: np.array(array) for name, array in tree_flatten(model.parameters())}
    for name, values in one_tensor_of_norms(parameters).items():
        if name == "lm_head.weight" and kind.config["tie_word_embeddings"]:
            continue
        part = name.split(".")[-2]
        if kind.permuted and part in ("q_proj", "k_proj"):
            values = interleaved(values, HEADS if part == "q_proj" else KV)
        if name.endswith("norm.weight"):
            values = values + np.float32(kind.norm_offset)
        shown = name
        for ours, theirs in kind.renamed:
            shown = shown.replace(ours, theirs)
        stored = names.get_name(shown, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        small = values.ndim == 1 or name.endswith("norm.weight")
        found[name] = quantised(stored, values, "F32" if small else matrix_type)
    return found


def one_tensor_of_norms(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Norms of each head (``q_layernorm.norms.3.weight``) as rows of one tensor in their place."""
    heads = [re.sub(r"\.norms\.\d+\.", ".", name) for name in values]
    found = {}
    for name, whole in zip(values, heads, strict=True):
        rows = [values[other] for other, of in zip(values, heads, strict=True) if of == whole]
        found[whole] = np.stack(rows) if whole != name else values[name]
    return found


def quantised(name: str, values: np.ndarray, kind: str) -> Stored:
    """Values in one of GGUF's types; types that the package cannot write get random blocks."""
    qtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    if values.shape[-1] % block:
        return Stored(name, values, gguf.GGMLQuantizationType.F32)
    try:
        return Stored(name, gguf.quantize(values, qtype), qtype)
    except NotImplementedError:
        return Stored(name, random_blocks(values, qtype, block, size), qtype)


def random_blocks(values: np.ndarray, qtype: Any, block: int, size: int) -> np.ndarray:
    """Any bytes are blocks; scales that are too large or not numbers are drawn again as small."""
    rng = np.random.default_rng(len(values))
    shape = (*values.shape[:-1], values.shape[-1] // block, size)
    data = rng.integers(0, 256, shape).astype(np.uint8)
    for start in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
                  "Q6_K": (208,)}[qtype.name]:  # fmt: skip
        halves = rng.uniform(0.001, 0.003, (*shape[:-1], 1)).astype(np.float16)
        data[..., start : start + 2] = halves.view(np.uint8)
    return data.reshape(*values.shape[:-1], -1)


def expected_weights(kind: Kind, stored: dict[str, Stored]) -> list[tuple[str, mx.array]]:
    """What mlx-lm's model should hold: dequantised by the gguf package, rows put back."""
    found = []
    for name, tensor in stored.items():
        values = np.array(gguf.dequantize(tensor.data, tensor.type), dtype=np.float32)
        part = name.split(".")[-2]
        if kind.permuted and part in ("q_proj", "k_proj"):
            heads = HEADS if part == "q_proj" else KV
            back = np.empty(len(values), int)
            back[interleaved(np.arange(len(values)), heads)] = np.arange(len(values))
            values = values[back]
        if name.endswith("norm.weight"):
            values = values - np.float32(kind.norm_offset)
        found.append((name, mx.array(values)))
    return found


def write_gguf(
    path: Path,
    kind: Kind,
    stored: dict[str, Stored],
    extra: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """Write a file as llama.cpp's converter does; ``changes`` replace or (None) drop metadata."""
    config, prefix = kind.config, kind.architecture
    eps = "layer_norm_rms_epsilon"
    if kind.config["model_type"] in ("starcoder2", "stablelm", "cohere"):
        eps = "layer_norm_epsilon"
    own = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        f"attention.{eps}": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
        **kind.keys,
    }
    values: dict[str, Any] = {
        "general.name": "tiny",
        **{f"{prefix}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (VOCAB - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values |= {k if k.startswith(("general", "split", "tokenizer", prefix)) else f"{prefix}.{k}": v
               for k, v in changed.items()}  # fmt: skip
    writer = gguf.GGUFWriter(str(path), prefix)
    for key, value in values.items():
        add_value(writer, key, value)
    for tensor in stored.values():
        plain = tensor.data.dtype in (np.float32, np.float16)
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=None if plain else tensor.type)
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tiny_gguf(path: Path, name: str = "llama", matrix_type: str = "Q4_0", **changes: Any) -> Path:
    """A whole file of one family and type."""
    kind = KINDS[name]
    return write_gguf(path, kind, stored_tensors(kind, make_model(kind), matrix_type), **changes)
