"""Tiny targets, conversations and settings for tests of training."""

from __future__ import annotations

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)

import mlx.core as mx  # isort: skip
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_redrafter.target.target import Target
from mlx_redrafter.training import (
    TokenRow,
)

VOCAB, HIDDEN = 48, 16


def make_target(seed: int = 0, tied: bool = True, hidden: int = HIDDEN) -> Target:
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
    )
    model = llama.Model(args)
    key = mx.random.key(seed)
    weights = []
    for name, value in tree_flatten(model.parameters()):
        key, used = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=used)
        weights.append(
            (name, value if value.ndim == 1 else noise * (0.3 if "embed" in name else 0.2))
        )
    model.load_weights(weights)
    return Target(model)


def word_model(vocab_size: int) -> llama.Model:
    """An mlx-lm model of one narrow layer, for tokenizers of a few words."""
    args = llama.ModelArgs(
        model_type="llama", hidden_size=HIDDEN, num_hidden_layers=1, intermediate_size=16,
        num_attention_heads=2, rms_norm_eps=1e-5, vocab_size=vocab_size,
    )  # fmt: skip
    mx.random.seed(4)
    model = llama.Model(args)
    mx.eval(model.parameters())
    return model


def make_rows(count: int = 6, seed: int = 0, length: int = 20) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        n = int(rng.integers(length // 2, length + 1))
        answer = np.zeros(n, dtype=bool)
        answer[int(rng.integers(2, 6)) :] = True
        answer[n // 2] = False  # a token between two turns
        rows.append(TokenRow(rng.integers(0, VOCAB, n).astype(np.int32), answer))
    return rows
