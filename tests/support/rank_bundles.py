"""Tiny bundles of architectures that mlx-lm shares among processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
from bundles import make_tokenizer
from mlx.utils import tree_flatten

from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.text.drafter_files import save_drafter

SLIDING = ["sliding_attention", "full_attention"]
# What each needs so that a pipeline has several layers, and so that heads divide by 4.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen2": {"num_hidden_layers": 3},
    "ministral3": {
        "num_hidden_layers": 4,
        "layer_types": SLIDING * 2,
    },
    "deepseek_v3": {"num_hidden_layers": 3},
    "glm4_moe": {"num_hidden_layers": 3},
    "qwen3_next": {"num_hidden_layers": 4},
}


def make_rank_bundle(directory: Path, kind: str, *, drafter: bool = True) -> Path:
    """Write a bundle of a random model and an untrained head, if any; returns its path."""
    directory.mkdir(parents=True)
    vocab_size = make_tokenizer(directory)
    wanted = {"vocab_size": vocab_size, "tie_word_embeddings": True, **KINDS[kind]}
    mx.random.seed(3)  # for what models draw when they are made, and keep
    model = architectures.build(kind, seed=3, **wanted)
    config = {
        "model_type": kind, **architectures.COMMON, **architectures.CONFIGS[kind], **wanted,
    }  # fmt: skip
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    if not drafter:
        return directory
    shape = DrafterConfig(
        hidden_size=architectures.HIDDEN, vocab_size=vocab_size, exit_dim=32, num_draft_layers=1
    )
    mx.random.seed(5)
    save_drafter(directory / "drafter", RecurrentDrafter(shape))
    return directory
