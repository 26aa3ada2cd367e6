"""Tiny random models of several architectures, and drafters and draft sources to go with them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.memory_drafter import MemoryDrafter
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.tree import DraftTree

VOCAB = 64
HIDDEN = 32
WINDOW = 8

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

# What each architecture needs beyond that; the part before a ":" names mlx-lm's module.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama:llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama:sliding": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": WINDOW,
    },
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 8.0},
    "gemma3_text": {
        "query_pre_attn_scalar": 8.0,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "phi3": {},
    "phi3:longrope": {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
        },
        "original_max_position_embeddings": 1024,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere2": {
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "logit_scale": 1.0,
    },
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
    },
}

WINDOWED = ("llama:sliding", "gemma3_text", "gpt_oss", "cohere2")


def build(name: str, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """A new random model; equal arguments give equal weights.

    Args:
        name: A key of ARCHITECTURES.
        seed: Names the weights.
        overrides: Entries of the model's config.
    """
    kind = name.split(":")[0]
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    values = {**_COMMON, "model_type": kind, **ARCHITECTURES[name], **overrides}
    model = module.Model(module.ModelArgs.from_dict(values))
    randomise(model, seed)
    model.eval()
    return model


@cache
def shared(name: str) -> nn.Module:
    """One model of each architecture for the whole run; tests must not change its weights."""
    return build(name)


def randomise(module: nn.Module, seed: int) -> None:
    """Fill all parameters: rows keep the scale, norms are near one, logits spread by about 3."""
    rng = np.random.default_rng(seed)
    filled = []
    for name, value in tree_flatten(module.parameters()):
        if not mx.issubdtype(value.dtype, mx.floating):
            continue
        noise = rng.standard_normal(value.shape)
        if "norm" in name and name.endswith("weight"):
            array = 1.0 + 0.1 * noise
        elif value.ndim == 1:
            array = 0.2 * noise
        elif "embed" in name:
            array = noise if "gemma" not in type(module).__module__ else 0.5 * noise
        elif "lm_head" in name and value.shape[0] == VOCAB:
            array = 3.0 * noise / np.sqrt(value.shape[-1])
        else:
            array = 1.5 * noise / np.sqrt(value.shape[-1])
        filled.append((name, mx.array(array.astype(np.float32))))
    module.update(tree_unflatten(filled))
    mx.eval(module.parameters())


def build_drafter(
    *,
    hidden_size: int = HIDDEN,
    vocab_size: int = VOCAB,
    exit_dim: int = 2 * HIDDEN,
    num_draft_layers: int = 1,
    rnn: bool = True,
    draft_vocab_size: int | None = None,
    lookback: int = 0,
    seed: int = 0,
) -> RecurrentDrafter:
    """A new random drafter; with a small head its tokens are spread over the vocabulary."""
    drafter = RecurrentDrafter(
        DrafterConfig(
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            exit_dim=exit_dim,
            num_draft_layers=num_draft_layers,
            rnn=rnn,
            draft_vocab_size=draft_vocab_size,
            lookback=lookback,
        )
    )
    randomise(drafter, seed)
    if draft_vocab_size is not None:
        rng = np.random.default_rng(seed)
        tokens = np.sort(rng.choice(vocab_size, draft_vocab_size, replace=False))
        drafter.draft_tokens = mx.array(tokens.astype(np.int32))
    drafter.eval()
    return drafter


def memory_drafter(
    *,
    size: int | None = None,
    window: int = 8,
    layers: tuple[int, ...] = (0, 1),
    vocab_size: int = VOCAB,
    seed: int = 0,
) -> MemoryDrafter:
    """A new random head with a memory of the text; ``size`` as ``draft_vocab_size``."""
    config = DrafterConfig(
        hidden_size=HIDDEN,
        vocab_size=vocab_size,
        exit_dim=12,
        num_draft_layers=1,
        draft_vocab_size=size,
        memory_heads=2,
        memory_head_dim=10,
        memory_window=window,
        state_size=24,
        mlp_size=20,
        target_layers=layers,
    )
    drafter = MemoryDrafter(config)
    randomise(drafter, seed)
    if size is not None:
        tokens = np.sort(np.random.default_rng(seed).choice(vocab_size, size, replace=False))
        drafter.draft_tokens = mx.array(tokens.astype(np.int32))
    drafter.eval()
    return drafter


class ScriptedSource:
    """A draft source that hides the true continuation among wrong branches.

    It knows the text that the target is going to write, and where in it the root stands from the
    text that it is told. It evaluates the root, to see that it is the one that belongs there.

    Args:
        text: Prompt and continuation.
        seed: Names the shapes of the trees.
        max_depth: No node is deeper.
        wrong: Chance that a node on the true path is left out, so that acceptance ends there.
        siblings: At most this many wrong nodes are hung anywhere in the tree.
        full: Whether the truth always goes down to max_depth.
        vocab_size: Range of the wrong tokens.
    """

    seconds = 0.0

    def __init__(
        self,
        text: Sequence[int],
        *,
        seed: int = 0,
        max_depth: int = 4,
        wrong: float = 0.2,
        siblings: int = 6,
        full: bool = False,
        vocab_size: int = VOCAB,
    ):
        self.max_depth = max_depth
        self._text = list(text)
        self._rng = np.random.default_rng(seed)
        self._wrong = wrong
        self._siblings = siblings
        self._full = full
        self._vocab_size = vocab_size
        self.expected: list[int] = []  # accepted drafted tokens of each step, no cut considered

    def __call__(self, state: DraftInput) -> DraftTree:
        root, at = int(state.root.item()), len(state.text)
        assert [*state.text, root] == self._text[: at + 1]
        depth = self.max_depth if self._full else int(self._rng.integers(0, self.max_depth + 1))
        depth = min(depth, max(0, len(self._text) - at - 2))
        while not self._full and depth and self._rng.random() < self._wrong:
            depth -= 1
        truth = self._text[at + 1 : at + 1 + depth]
        after = self._text[at + 1 + depth : at + 2 + depth]
        tree = random_tree(
            self._rng,
            root,
            truth,
            max_depth=self.max_depth,
            extra=int(self._rng.integers(0, self._siblings + 1)),
            avoid_after_truth=after,
            vocab_size=self._vocab_size,
        )
        self.expected.append(depth)
        return tree


def random_tree(
    rng: np.random.Generator,
    root: int,
    truth: Sequence[int] = (),
    *,
    max_depth: int = 4,
    extra: int = 6,
    avoid_after_truth: Sequence[int] = (),
    vocab_size: int = VOCAB,
) -> DraftTree:
    """A tree that contains ``truth`` as a path, at rows that seldom follow one another.

    Args:
        rng: Where the shape comes from.
        root: The root's token.
        truth: Tokens of one path.
        max_depth: No node is deeper.
        extra: Number of other nodes; siblings always differ.
        avoid_after_truth: Tokens that may not follow the end of the path.
        vocab_size: Range of the other nodes' tokens.
    """
    tokens, parents, depths = [root], [-1], [0]
    taken: dict[int, set[int]] = {0: set(truth[:1]) or set(avoid_after_truth)}
    true_end, true_depth = 0, 0
    todo = ["true"] * len(truth) + ["extra"] * extra
    order = rng.permutation(len(todo)) if todo else []
    for index in order:
        if todo[index] == "true":
            parent, token = true_end, truth[true_depth]
        else:
            open_nodes = [n for n in range(len(tokens)) if depths[n] < max_depth]
            parent = int(rng.choice(open_nodes))
            free = [t for t in range(vocab_size) if t not in taken[parent]]
            token = int(rng.choice(free))
        node = len(tokens)
        tokens.append(token)
        parents.append(parent)
        depths.append(depths[parent] + 1)
        taken.setdefault(parent, set()).add(token)
        taken[node] = set()
        if todo[index] == "true":
            true_end, true_depth = node, true_depth + 1
            following = truth[true_depth : true_depth + 1] or avoid_after_truth
            taken[node] = set(following)
    return DraftTree.from_parents(tokens, parents)


def prompt_of(length: int, *, seed: int = 0, vocab_size: int = VOCAB) -> list[int]:
    """Random token ids."""
    rng = np.random.default_rng([seed, length])
    return [int(token) for token in rng.integers(0, vocab_size, length)]


MAMBA: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}


def mamba() -> Any:
    """A model of recurrent layers alone."""
    module = importlib.import_module("mlx_lm.models.mamba")
    made = module.Model(module.ModelArgs.from_dict(MAMBA))
    randomise(made, 3)
    return made
