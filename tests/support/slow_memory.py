"""The head with a memory of the text, written out in numpy: one token and one level at a time."""

from __future__ import annotations

import numpy as np
from slow_beam import silu, weights_of

from mlx_redrafter.drafting.memory_drafter import EPSILON, ROTARY_BASE, MemoryDrafter


def norm(x: np.ndarray) -> np.ndarray:
    """x over its root mean square."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)


class SlowMemoryHead:
    """Drafts from a text whose hidden states and embeddings are known.

    Args:
        drafter: The head.
        hidden: Of the target's layers at each token, (T, layers, hidden_size).
        embeddings: Of each token and of further ones, (T, hidden_size).
    """

    def __init__(self, drafter: MemoryDrafter, hidden: np.ndarray, embeddings: np.ndarray):
        self.config, self.w = drafter.config, weights_of(drafter)
        self.hidden, self.embeddings = hidden.astype(np.float64), embeddings.astype(np.float64)

    def fused(self, place: int) -> np.ndarray:
        return self.w["fuse.weight"] @ norm(self.hidden[place]).reshape(-1)

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        """Heads (heads, head_dim) whose first half is turned by a position."""
        half = self.config.rotary_dim // 2
        angle = position * ROTARY_BASE ** (-np.arange(half) / half)
        x, a, b = x.copy(), x[:, :half].copy(), x[:, half : 2 * half].copy()
        x[:, :half] = a * np.cos(angle) - b * np.sin(angle)
        x[:, half : 2 * half] = b * np.cos(angle) + a * np.sin(angle)
        return x

    def heads(self, name: str, x: np.ndarray) -> np.ndarray:
        return (self.w[f"{name}.weight"] @ x).reshape(self.config.memory_heads, -1)

    def recall(self, x: np.ndarray, position: int, anchor: int) -> np.ndarray:
        """What a state finds among the tokens up to the anchor and those that followed them."""
        query = self.turned(self.heads("query", norm(x)), position)
        scores, values = [], []
        window = self.config.memory_window or 0
        for place in range(max(0, anchor + 1 - window), anchor + 1):
            state = norm(self.fused(place))
            key = self.turned(self.heads("key", state), place)
            scores.append((query * key).sum(-1) / np.sqrt(key.shape[-1]))
            token = self.heads("token_value", norm(self.embeddings[place + 1]))
            values.append(self.heads("value", state) + token)
        weights = np.exp(np.array(scores) - np.max(scores, axis=0))
        weights /= weights.sum(0)
        found = (weights[..., None] * np.array(values)).sum(0)
        return self.w["recall.weight"] @ found.reshape(-1)

    def draft(self, anchor: int, tokens: list[int], table: np.ndarray) -> list[np.ndarray]:
        """Logits after each of the drafted tokens, the root first; ``table`` holds embeddings."""
        state, made = self.fused(anchor), []
        for depth, token in enumerate(tokens):
            x = self.w["rnn_w.weight"] @ norm(table[token].astype(np.float64))
            x = x + self.w["rnn_u.weight"] @ norm(state) + self.w["rnn_u.bias"]
            x = x + self.recall(x, anchor + 1 + depth, anchor)
            gate, up = np.split(self.w["gate_up.weight"] @ norm(x), 2)
            state = x + self.w["down.weight"] @ (silu(gate) * up)
            made.append(self.w["lm_head.0.weight"] @ (self.w["exit.weight"] @ norm(state)))
        return made
