"""A tiny config for every architecture module of mlx-lm that can be made here.

Each entry of ``CONFIGS`` adds to the common entries what its module wants otherwise. The key before
a ":" names the module.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import metal_kernels
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common_config import COMMON, HIDDEN, VOCAB, WINDOW
from mlx.utils import tree_flatten, tree_unflatten

from mlx_redrafter.target.architectures import REFUSED

SLIDING = ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]
_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
_MLA: dict[str, Any] = {"num_key_value_heads": 4, "num_experts_per_tok": 2}
_KDA = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 4,
    "head_dim": 32,
    "short_conv_kernel_size": 4,
}

_LFM2 = {
    "block_dim": HIDDEN,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 48,
    "layer_types": ["conv", "full_attention"],
}
_GEMMA3N = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCAB,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "layer_types": SLIDING * 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 16,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
_GEMMA4 = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": SLIDING * 2,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 16,
    "global_head_dim": 32,
}
_LLAMA4 = {
    "num_hidden_layers": 4,
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 48,
    "num_experts_per_tok": 1,
    "rope_scaling": None,
    "floor_scale": 8,
}
_LONGCAT = {
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "num_key_value_heads": 4,
}
_ROPE_BY_TYPE = {
    "sliding_attention": {"rope_theta": 1000.0},
    "full_attention": {"rope_theta": 10000.0},
}
_MIMO_V2 = {
    "hybrid_layer_pattern": [1, 0],
    "moe_layer_freq": [0, 1],
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "swa_rope_theta": 10000.0,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "swa_v_head_dim": 8,
}
_LONG_MINICPM = {
    "type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
_MINIMAX_M3 = {
    "moe_layer_freq": [0, 1],
    "dense_intermediate_size": 48,
    "sparse_attention_freq": [0, 1],
    "index_block_size": 4,
    "index_topk_blocks": 2,
}
_SCALED_QUERIES = {
    "rope_theta": 10000.0,
    "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": 16,
}
_MINISTRAL3 = {"layer_types": SLIDING, "rope_parameters": _SCALED_QUERIES}
_MUSE_SPARK = {
    "rope_parameters": {"rope_theta": 10000.0},
    "layer_rope_theta": [10000.0, 0],
    "layer_types": SLIDING,
    "final_logit_softcapping": 30.0,
    "output_multiplier": 1.0,
    "moe_hidden_size": 32,
    "num_shared_experts": 0,
}
_QWEN3_5 = {"num_hidden_layers": 3, "full_attention_interval": 2, "num_experts": 0}
_QWEN3_5_MOE = {"num_hidden_layers": 3, "full_attention_interval": 2}
_HADAMARD = {
    "tensor_namespace": "mlx-vlm-qwen3_5",
    "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
    "modules": [
        {
            "path": f"model.layers.{layer}.mlp.down_proj",
            "block": 512,
            "embedding": False,
            "dtype": "float16",
        }
        for layer in range(3)
    ],
}
_KIMI_K3 = {
    "linear_attn_config": _KDA,
    "hidden_act": "situ",
    "num_key_value_heads": 4,
}

# Modules that want nothing beyond the common entries.
_AS_IS = """
Klear apertus bailing_hybrid bailing_moe bailing_moe_linear bitnet cohere cohere2 dots1 ernie4_5
ernie4_5_moe exaone falcon_h1 gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neox gptj
granite granitemoe helium hunyuan_v1_dense internlm2 internlm3 iquestloopcoder laguna lille-130m
llama mimo minicpm minimax mixtral muse_glimmer nanbeige nanochat nemotron olmo2 olmoe phi phi3
phimoe phixtral plamo2 plamo3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm
starcoder2 talkie telechat3 youtu_llm
"""

CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {} for name in _AS_IS.split()},
    "afm7": {"num_layers": 3, "num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": SLIDING},
    "afmoe:nope": {"layer_types": ["full_attention", "full_attention"]},
    "baichuan_m1": {"sliding_window_layers": [1]},
    "bailing_moe_v3": {"layer_group_size": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek": _MLA,
    "deepseek_v2": {**_MLA, "topk_method": "greedy", "rope_scaling": _YARN},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v41": {
        "num_hidden_layers": 3,
        "o_groups": 2,
        "o_lora_rank": 16,
        "scoring_func": "sqrtsoftplus",
        "compress_ratios": (1, 4, 4),
        "kv_source_layer_ids": (0, 1, 1),
        "index_source_layer_ids": (0, 1, 1),
        "candidate_topk_blocks": 2,
        "candidate_block_size": 2,
        "hc_mult": 2,
    },
    "exaone4": {"sliding_window_pattern": "LG", "rope_scaling": None},
    "exaone_moe": {"layer_types": SLIDING, "is_moe_layer": [False, True]},
    "gear": {"num_hidden_layers": 3, "layer_types": ["conv_mixer", *SLIDING]},
    "gear:convolutions": {"layer_types": ["conv_mixer", "conv_mixer"]},
    "gemma3": {"text_config": {"model_type": "gemma3_text"}},
    "gemma3n": {"text_config": {"model_type": "gemma3n_text", **_GEMMA3N}},
    "gemma4": {"text_config": {"model_type": "gemma4_text", **_GEMMA4}},
    "gemma4_text": _GEMMA4,
    "glm4_moe": {"rope_scaling": None},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": {**_MLA, "rope_parameters": {"rope_theta": 10000.0}},
    "gpt_oss": {"layer_types": SLIDING},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "granitemoehybrid:mamba": {"layer_types": ["mamba", "mamba"]},
    "granitemoehybrid:nope": {
        "layer_types": ["mamba", "attention"],
        "position_embedding_type": "nope",
    },
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3", **_MLA}},
    "kimi_k3": {"text_config": {"model_type": "kimi_linear", **_KIMI_K3}},
    "kimi_linear": {"linear_attn_config": _KDA, "num_key_value_heads": 4},
    "kimi_vl": {"text_config": {"model_type": "deepseek_v3", **_MLA}},
    "lfm2-vl": {"text_config": {"model_type": "lfm2", **_LFM2}},
    "lfm2": _LFM2,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama:sliding": {"layer_types": SLIDING},
    "llama4": {"text_config": {"model_type": "llama4_text", **_LLAMA4}},
    "llama4_text": {"intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    "llama4_text:tied": {
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0],
        "tie_word_embeddings": True,
    },
    "llama4_text:nope": {"intermediate_size_mlp": 48, "no_rope_layers": [0, 0]},
    "longcat_flash": {"attention_method": "MLA", "zero_expert_type": "identity", **_LONGCAT},
    "longcat_flash_ngram": {**_LONGCAT, "ngram_vocab_size_ratio": 3},
    "mamba": {"use_bias": False},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": SLIDING, "rope_parameters": _ROPE_BY_TYPE},
    "mimo_v2_flash": _MIMO_V2,
    "minicpm:tied": {"tie_word_embeddings": True},
    "minicpm3": {"num_key_value_heads": 4, "rope_scaling": _LONG_MINICPM},
    "minimax_m3_vl": {"text_config": {"model_type": "minimax_m3", **_MINIMAX_M3}},
    "ministral3": _MINISTRAL3,
    "mistral3": {"text_config": {"model_type": "ministral3", **_MINISTRAL3}},
    "mistral3:llama": {"text_config": {"model_type": "llama"}},
    "mistral4": {**_MLA, "rope_parameters": {**_YARN, **_SCALED_QUERIES}},
    "muse_spark": {"text_config": {"model_type": "muse_spark_text", **_MUSE_SPARK}},
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 0.5}},
            {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
        ],
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "-", "E"]},
    "olmo3": {"layer_types": SLIDING},
    "olmo_hybrid": {"layer_types": LINEAR},
    "olmo_hybrid:nope": {"layer_types": LINEAR, "rope_parameters": {"rope_theta": None}},
    "openelm": {
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_dim_divisor": 16,
        "ffn_multipliers": [1.0, 1.5],
    },
    "phi3small": {
        "dense_attention_every_n_layers": 1,
        "ff_intermediate_size": 48,
        "gegelu_limit": 20.0,
        "vocab_size": 100352,  # some ids are masked by number
    },
    "pixtral": {"text_config": {"model_type": "llama"}},
    "plamo": {"n_shared_head": 2},
    "prism_hadamard_qwen35": {
        "text_config": {"model_type": "qwen3_5_text", **_QWEN3_5, "intermediate_size": 512},
        **_HADAMARD,
    },
    "qwen": {"kv_channels": 16},
    "qwen2_vl": {"text_config": {"model_type": "qwen2"}},
    "qwen3_5": {"text_config": {"model_type": "qwen3_5_text", **_QWEN3_5}},
    "qwen3_5_moe": {"text_config": {"model_type": "qwen3_5_moe_text", **_QWEN3_5_MOE}},
    "qwen3_next": {"num_hidden_layers": 3, "full_attention_interval": 2},
    "qwen3_vl": {"text_config": {"model_type": "qwen3"}},
    "qwen3_vl_moe": {"text_config": {"model_type": "qwen3_moe"}},
    "recurrent_gemma": {"logits_soft_cap": 30.0, "block_types": ["recurrent", "attention"]},
    "rwkv7": {
        "head_dim": 16,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "seed_oss:tied": {"tie_word_embeddings": True},
    "smollm3:nope": {"no_rope_layers": [0, 0]},
    "spark2_5": {"hidden_act": "gelu", "layer_types": SLIDING, "rope_parameters": _ROPE_BY_TYPE},
    "step3p5": {
        "num_attention_groups": 2,
        "layer_types": SLIDING,
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        "moe_layers_enum": "1",
    },
}


def build(name: str, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """A new random model; equal arguments give equal weights. Overrides go into its config."""
    kind = name.split(":")[0]
    metal_kernels.install()
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module(f"mlx_lm.models.{kind}")
    entry = dict(CONFIGS[name])
    text = entry.get("text_config")
    if text is not None:
        entry["text_config"] = {**COMMON, **text}
    values = {"model_type": kind, **COMMON, **entry, **overrides}
    mx.random.seed(seed)  # biases begin at random, and vectors stay near what they were
    model = module.Model(module.ModelArgs.from_dict(values))
    randomise(model, seed)
    model.eval()
    return model


def randomise(module: nn.Module, seed: int) -> None:
    """Fill matrices with rows that keep scale and vectors with values near what they were."""
    rng = np.random.default_rng(seed)
    filled = []
    for name, value in tree_flatten(module.parameters()):
        if value.dtype == mx.uint8:  # BitNet's packed ternary weights
            filled.append((name, mx.array(_ternary(rng, value.shape))))
            continue
        if not mx.issubdtype(value.dtype, mx.floating):
            continue
        noise = rng.standard_normal(value.shape)
        if value.ndim <= 1 or min(value.shape[-2:]) == 1:
            array = np.array(value.astype(mx.float32)) + 0.1 * noise
        elif value.shape[0] == VOCAB and "head" not in name:
            # Small, or a tied head would choose the token it was just given for ever.
            array = 0.2 * noise
        else:
            array = 1.5 * noise / np.sqrt(value.shape[-1])
        filled.append((name, mx.array(array.astype(np.float32))))
    module.update(tree_unflatten(filled))
    mx.eval(module.parameters())


def _ternary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    parts = rng.integers(0, 3, (4, *shape)).astype(np.uint8)
    packed: np.ndarray[Any, Any] = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
    return packed


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    rng = np.random.default_rng([seed, length])
    return [int(token) for token in rng.integers(1, VOCAB, length)]


# Written for Metal only: its module cannot run on a CPU.
METAL = ("muse_spark",)
HERE = [name for name in CONFIGS if name not in METAL]
DRAFTED = [name for name in HERE if name not in REFUSED]
