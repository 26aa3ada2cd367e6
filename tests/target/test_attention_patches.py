"""Models that make masks and positions of their own: each node as it would stand in the text."""

from __future__ import annotations

from functools import cache

import architectures
import mlx.core as mx
import pytest
from architectures import prompt_of
from reference_step import path_to

from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.target.attention_patches import by_position
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree, HostTree

TOKENS = (7, 11, 5, 42, 9, 8, 11, 60, 33)
PARENTS = (-1, 0, 0, 1, 1, 2, 4, 6, 5)


@cache
def target(name: str) -> Target:
    return Target(architectures.build(name))


def prefilled(of: Target, tokens: list[int]) -> PromptCache:
    held = of.make_cache()
    of.prefill(mx.array(tokens), held)
    held.extend(tokens)
    return held


@pytest.mark.parametrize("length", [1, 6, 13, 15, 16, 29, 45, 70])
@pytest.mark.parametrize("name", ["llama4", "minimax_m3_vl"])
def test_a_node_sees_its_own_path_only(name: str, length: int) -> None:
    """Logits after each node are those after its path alone, wherever chunks and blocks end."""
    of = target(name)
    assert of.verifies == "tree"
    prompt = prompt_of(length)
    held = prefilled(of, prompt)
    logits, _ = of.verify(DraftTree.from_parents(TOKENS, PARENTS), held)
    for node in range(len(TOKENS)):
        text = prompt + [TOKENS[one] for one in path_to(node, PARENTS)]
        expected = of.model(mx.array([text]), cache=of.make_cache().seams)[0, -1]
        assert mx.allclose(logits[node], expected, rtol=1e-4, atol=1e-4), node
    path = path_to(7, PARENTS)
    held.commit(path, [TOKENS[one] for one in path])
    again, _ = of.verify(DraftTree.from_parents(TOKENS, PARENTS), held)
    text = held.tokens + [TOKENS[one] for one in path_to(8, PARENTS)]
    expected = of.model(mx.array([text]), cache=of.make_cache().seams)[0, -1]
    assert mx.allclose(again[8], expected, rtol=1e-4, atol=1e-4)


def test_scores_in_the_order_of_positions() -> None:
    tree = DraftTree.from_parents(TOKENS, PARENTS)
    depths = HostTree(TOKENS, PARENTS, (0.0,) * 9).depths
    rows = mx.arange(9 * 12, dtype=mx.float32).reshape(1, 1, 9, 12)
    seen = mx.concatenate([mx.ones((9, 3), dtype=mx.bool_), tree.ancestors], axis=1)
    placed = by_position(mx.where(seen, rows, -mx.inf), tree)
    assert placed.shape == (1, 1, 9, 3 + 5)
    for node in range(9):
        line = [rows[0, 0, node, 3 + one].item() for one in path_to(node, PARENTS)]
        line += [float("-inf")] * (4 - depths[node])
        assert placed[0, 0, node].tolist() == [*rows[0, 0, node, :3].tolist(), *line]
