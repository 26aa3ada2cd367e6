"""The beam search written out in numpy, one beam after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.sampling import SamplingConfig


@dataclass
class Node:
    token: int
    parent: int
    depth: int
    total: float


def weights_of(drafter: Drafter) -> dict[str, np.ndarray]:
    return {
        name: np.array(value.astype(mx.float32)).astype(np.float64)
        for name, value in tree_flatten(drafter.parameters())
    }


def slow_logits(drafter: Drafter, hidden: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The head, written out."""
    w = weights_of(drafter)
    x = np.concatenate([hidden, state])
    if "input_proj.weight" in w:
        x = w["input_proj.weight"] @ x + w["input_proj.bias"]
    blocks = drafter.config.num_draft_layers
    for i in range(blocks):
        x = x + silu(w[f"lm_head.{i}.linear.weight"] @ x + w[f"lm_head.{i}.linear.bias"])
    return w[f"lm_head.{blocks}.weight"] @ x


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def slow_advance(drafter: Drafter, embedding: np.ndarray, state: np.ndarray) -> np.ndarray:
    if not drafter.config.rnn:
        return embedding + state
    w = weights_of(drafter)
    return silu(w["rnn_w.weight"] @ embedding + w["rnn_u.weight"] @ state + w["rnn_u.bias"])


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def slow_gain(logits: np.ndarray, noise: np.ndarray | None, sampling: SamplingConfig) -> np.ndarray:
    """Filtered, noisy, renormalised and clipped log-probabilities."""
    scores = log_softmax(logits)
    if noise is not None:
        probs = np.exp(scores)
        if sampling.top_p < 1:
            order = np.argsort(-probs)
            before = np.cumsum(probs[order]) - probs[order]
            scores[order[before >= sampling.top_p]] = -np.inf
        if sampling.min_p:
            scores[scores < scores.max() + np.log(sampling.min_p)] = -np.inf
        if sampling.top_k:
            scores[np.argsort(-scores)[sampling.top_k :]] = -np.inf
        scores = log_softmax(scores / sampling.temperature + noise)
    return np.clip(scores, -100.0, -1e-3)


def slow_search(
    drafter: Drafter,
    embeddings: np.ndarray,
    shape: BeamShape,
    sampling: SamplingConfig,
    hidden: np.ndarray,
    root: int,
    noise: np.ndarray | None,
    text: Sequence[int] = (),
) -> list[Node]:
    """Every node the search opens, the root first, then depth by depth from the likeliest on."""
    columns = (
        np.arange(drafter.config.vocab_size)
        if drafter.config.draft_vocab_size is None
        else np.array(drafter.draft_tokens)
    )
    nodes = [Node(root, -1, 0, 0.0)]
    state = np.zeros(len(hidden))
    for token in text[max(0, len(text) - drafter.config.lookback) :]:
        state = slow_advance(drafter, embeddings[token], state)
    beams = [(0, state)]
    for depth in range(shape.length):
        candidates = []
        for node, state in beams:
            after = slow_advance(drafter, embeddings[nodes[node].token], state)
            row = None if noise is None else noise[depth][columns]
            gains = slow_gain(slow_logits(drafter, hidden, after), row, sampling)
            candidates += [
                (nodes[node].total + gain, node, int(columns[column]), after)
                for column, gain in enumerate(gains)
            ]
        candidates.sort(key=lambda candidate: -candidate[0])
        beams = []
        for total, node, token, after in candidates[: shape.width]:
            beams.append((len(nodes), after))
            nodes.append(Node(token, node, depth + 1, total))
    return nodes


def slow_layout(nodes: list[Node], shape: BeamShape) -> list[int]:
    """The likeliest nodes; of these the best final beam's in order, then the others by score."""
    finals = range(len(nodes) - shape.width, len(nodes))
    leader = max(finals, key=lambda n: nodes[n].total)
    line: list[int] = []
    while leader != 0:
        line.insert(0, leader)
        leader = nodes[leader].parent
    others = sorted(range(1, len(nodes)), key=lambda n: -nodes[n].total)
    if shape.max_leaves is not None:  # the whole of it, and as many others as there is room for
        others = [*line, *(n for n in others if n not in line)]
    kept = others[: shape.nodes]
    first = [n for n in line if n in kept]
    return [0, *first, *(n for n in kept if n not in first)]
