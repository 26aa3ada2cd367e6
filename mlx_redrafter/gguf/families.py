"""Model families that both GGUF and mlx-lm know: their configuration, and how weights differ.

What is special about each is from llama.cpp's converter, which writes these files: llama's rows of
q and k are reordered for interleaved rotation, Gemma's norms are stored with 1 added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import RedrafterError
from .file import LARGEST_INTEGER, GGUFModel
from .rope import rope_scaling

Config = dict[str, Any]
# Models in which a part of each head may be turned by its position.
TURNING_IN_PART = ("phi3", "stablelm")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    """How one family's files become an mlx-lm model.

    Attributes:
        configure: Makes config.json's values.
        permuted: Whether rows of q and k are interleaved in pairs.
        norm_offset: What is added to the stored norms' weights.
        wide: Whether activations leave float16's range, so that bfloat16 or float32 is needed.
        renamed: Parts of mlx-lm's parameter names, and what GGUF's name table calls them.
    """

    configure: Callable[[GGUFModel], Config]
    permuted: bool = False
    norm_offset: float = 0.0
    wide: bool = False
    renamed: tuple[tuple[str, str], ...] = ()


def family_of(model: GGUFModel) -> Family:
    """The family of a file.

    Raises:
        RedrafterError: Naming it, if it is not one of those known here.
    """
    name = model.architecture
    if name not in FAMILIES:
        raise RedrafterError(
            f"'{model.path}' is a model of the family '{name}', which cannot be converted from "
            f"GGUF here (known: {', '.join(sorted(FAMILIES))}): convert its original checkpoint."
        )
    return FAMILIES[name]


def configuration(model: GGUFModel) -> Config:
    """config.json's values, without quantisation and special tokens.

    Raises:
        RedrafterError: If metadata is missing or impossible.
    """
    return family_of(model).configure(model)


def _common(model: GGUFModel, kind: str, eps: str = "rms_norm_eps") -> Config:
    """Values that nearly all families share."""
    hidden, heads = model.integer("embedding_length"), model.integer("attention.head_count")
    layers = model.integer("block_count")
    if not 1 <= layers <= len(model.tensors) or not 1 <= heads <= hidden:
        raise model.refusal(f"{model.architecture}.block_count", layers, "the number of layers")
    key = "layer_norm_rms_epsilon" if eps.startswith("rms") else "layer_norm_epsilon"
    base = model.positive("rope.freq_base", 10000.0)
    head_dim = model.integer("attention.key_length", hidden // heads)
    rows = _embedding_rows(model, hidden)
    config: Config = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": model.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.integer("attention.head_count_kv", heads),
        eps: model.positive(f"attention.{key}"),
        "vocab_size": rows,
        "rope_theta": base,
        "max_position_embeddings": model.count(
            "context_length", LARGEST_INTEGER, "a number of tokens"
        ),
        "head_dim": head_dim,
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }
    _check_sizes(model, config)
    turning = model.integer("rope.dimension_count", head_dim)
    if turning != head_dim and not (kind in TURNING_IN_PART and 0 < turning < head_dim):
        raise model.refusal("rope.dimension_count", turning, f"{head_dim}, the width of a head,")
    if turning % 2:  # numbers turn in pairs
        raise model.refusal(f"{model.architecture}.rope.dimension_count", turning, "an even number")
    scaling = rope_scaling(model, turning, base)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _embedding_rows(model: GGUFModel, hidden: int) -> int:
    table = model.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2 or table.shape[1] != hidden:
        raise RedrafterError(
            f"'{model.path}' has no tensor 'token_embd.weight' of {hidden} columns, so it is no "
            "language model that could be converted."
        )
    return table.shape[0]


def _check_sizes(model: GGUFModel, config: Config) -> None:
    """Sizes that no tensor of the file could have are not built into a model."""
    largest = max(max(t.shape) for t in model.tensors.values())
    heads = config["num_attention_heads"]
    for key in ("intermediate_size", "num_key_value_heads", "head_dim"):
        if not 1 <= config[key] <= max(largest, 1) * 8:
            raise model.refusal(key, config[key], "a size that its tensors have")
    if heads % config["num_key_value_heads"]:
        raise model.refusal("attention.head_count_kv", config["num_key_value_heads"], "a divisor")


def _has(model: GGUFModel, name: str) -> bool:
    return f"blk.0.{name}" in model.tensors


def _llama(model: GGUFModel) -> Config:
    if model.integer("expert_count", 0):
        return _mixtral(model)
    return _common(model, "llama") | {
        "attention_bias": _has(model, "attn_q.bias"),
        "mlp_bias": _has(model, "ffn_up.bias"),
    }


def _mixtral(model: GGUFModel) -> Config:
    config = _common(model, "mixtral")
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise model.refusal("head_dim", config["head_dim"], "hidden size / heads")
    return config | {
        "num_local_experts": _experts(model),
        "num_experts_per_tok": _experts_used(model),
    }


def _experts(model: GGUFModel) -> int:
    return model.count("expert_count", 4096, "a number of experts")


def _experts_used(model: GGUFModel) -> int:
    experts = _experts(model)
    return model.count("expert_used_count", experts, f"a number from 1 to {experts}")


def _smollm3(model: GGUFModel) -> Config:
    return _llama(model) | {"model_type": "smollm3", "no_rope_layer_interval": 4}


def _granite(model: GGUFModel) -> Config:
    return _llama(model) | {
        "model_type": "granite",
        "attention_multiplier": model.positive("attention.scale"),
        "embedding_multiplier": model.positive("embedding_scale"),
        "residual_multiplier": model.positive("residual_scale"),
        "logits_scaling": model.positive("logit_scale"),
    }


def _qwen2(model: GGUFModel) -> Config:
    return _common(model, "qwen2")


def _qwen2_moe(model: GGUFModel) -> Config:
    return _common(model, "qwen2_moe") | {
        "num_experts": _experts(model),
        "num_experts_per_tok": _experts_used(model),
        "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": model.integer("expert_shared_feed_forward_length"),
    }


def _qwen3(model: GGUFModel) -> Config:
    return _common(model, "qwen3")


def _qwen3_moe(model: GGUFModel) -> Config:
    return _common(model, "qwen3_moe") | {
        "num_experts": _experts(model),
        "num_experts_per_tok": _experts_used(model),
        "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _gemma(model: GGUFModel) -> Config:
    return _common(model, "gemma") | {"tie_word_embeddings": True}


def _gemma2(model: GGUFModel) -> Config:
    config = _common(model, "gemma2") | {"tie_word_embeddings": True}
    return config | {
        "attn_logit_softcapping": model.positive("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.positive("final_logit_softcapping", 30.0),
        "sliding_window": _window(model, 4096),
        # The 27B model alone scales by its width; files do not say it but by their layers.
        "query_pre_attn_scalar": _query_scale(config, 46),
    }


def _gemma3(model: GGUFModel) -> Config:
    config = _common(model, "gemma3_text")
    if model.has("final_logit_softcapping") and model.number("final_logit_softcapping") > 0:
        raise RedrafterError(
            f"'{model.path}' cannot be converted: it caps its logits "
            "(gemma3.final_logit_softcapping), which mlx-lm's Gemma 3 does not."
        )
    if not model.has("rope.freq_base"):
        config["rope_theta"] = 1_000_000.0
    layers = config["num_hidden_layers"]
    wanted = f"a number from 1 to {layers}"
    return config | {
        "sliding_window": _window(model, config["vocab_size"]),
        "sliding_window_pattern": model.count(
            "attention.sliding_window_pattern", layers, wanted, 6
        ),
        "rope_local_base_freq": model.positive("rope.freq_base_swa", 10000.0),
        "query_pre_attn_scalar": _query_scale(config, 62),
    }


def _window(model: GGUFModel, default: int) -> int:
    return model.count("attention.sliding_window", LARGEST_INTEGER, "a number of tokens", default)


def _query_scale(config: Config, layers_of_27b: int) -> int:
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _phi3(model: GGUFModel) -> Config:
    config = _common(model, "phi3")
    turning = model.integer("rope.dimension_count", config["head_dim"])
    original = model.integer(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    return config | {
        "partial_rotary_factor": turning / config["head_dim"],
        "original_max_position_embeddings": original,
    }


def _olmo2(model: GGUFModel) -> Config:
    config = _common(model, "olmo2") | {"attention_bias": False, "mlp_bias": False}
    if not (window := model.integer("attention.sliding_window", 0)):
        return config
    # OLMo 3 goes by the same name; most of its layers see a window.
    kinds = _layer_types(model, config["num_hidden_layers"], 4)
    if SLIDING not in kinds:
        return config
    return config | {"model_type": "olmo3", "sliding_window": window, "layer_types": kinds}


def _layer_types(model: GGUFModel, layers: int, period: int) -> list[str]:
    """Which layers see a window: told for each, or all but every ``period``-th."""
    key = "attention.sliding_window_pattern"
    told = model.metadata.get(f"{model.architecture}.{key}")
    if not isinstance(told, list):
        period = model.count(key, LARGEST_INTEGER, "a number of layers", period)
        told = [bool((layer + 1) % period) for layer in range(layers)]
    if len(told) != layers or not all(isinstance(one, bool) for one in told):
        raise model.refusal(f"{model.architecture}.{key}", told, f"true or false {layers} times")
    return [SLIDING if one else FULL for one in told]


def _starcoder2(model: GGUFModel) -> Config:
    return _common(model, "starcoder2", "norm_epsilon")


def _stablelm(model: GGUFModel) -> Config:
    config = _common(model, "stablelm", "layer_norm_eps")
    turning = model.integer("rope.dimension_count", config["head_dim"])
    return config | {
        "use_qkv_bias": _has(model, "attn_q.bias"),
        "partial_rotary_factor": turning / config["head_dim"],
        "use_parallel_residual": not _has(model, "ffn_norm.weight"),
        "qk_layernorm": _has(model, "attn_q_norm.weight"),
    }


def _cohere(model: GGUFModel) -> Config:
    return _common(model, "cohere", "layer_norm_eps") | {
        "logit_scale": model.positive("logit_scale"),
        "use_qk_norm": _has(model, "attn_q_norm.weight"),
        "attention_bias": False,
        "layer_norm_bias": False,
    }


def _seed_oss(model: GGUFModel) -> Config:
    return _common(model, "seed_oss") | {
        "attention_bias": _has(model, "attn_q.bias"),
        "attention_out_bias": _has(model, "attn_output.bias"),
        "mlp_bias": _has(model, "ffn_up.bias"),
    }


_MIXTRAL = (
    ("block_sparse_moe.switch_mlp.gate_proj", "mlp.experts.gate_proj"),
    ("block_sparse_moe.switch_mlp.up_proj", "mlp.experts.up_proj"),
    ("block_sparse_moe.switch_mlp.down_proj", "mlp.experts.down_proj"),
)
_SWITCH = (("mlp.switch_mlp", "mlp.experts"),)

FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, permuted=True, renamed=_MIXTRAL),
    "smollm3": Family(_smollm3, permuted=True),
    "granite": Family(_granite, permuted=True),
    "qwen2": Family(_qwen2),
    "qwen2moe": Family(_qwen2_moe, renamed=_SWITCH),
    "qwen3": Family(_qwen3),
    "qwen3moe": Family(_qwen3_moe, renamed=_SWITCH),
    "gemma": Family(_gemma, norm_offset=1.0, wide=True),
    "gemma2": Family(_gemma2, norm_offset=1.0, wide=True),
    "gemma3": Family(_gemma3, norm_offset=1.0, wide=True),
    "phi3": Family(_phi3),
    "olmo2": Family(_olmo2),
    "starcoder2": Family(_starcoder2),
    "stablelm": Family(_stablelm),
    "command-r": Family(_cohere),
    "seed_oss": Family(_seed_oss),
}
