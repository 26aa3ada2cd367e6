"""Several texts in one forward: each sees its own tokens and tree, for every architecture."""

from __future__ import annotations

from functools import cache

import architectures
import mlx.core as mx
import pytest
from architectures import DRAFTED, prompt_of

from mlx_redrafter.cache.batch import BatchCache
from mlx_redrafter.cache.batch_tree import BatchTree
from mlx_redrafter.cache.forward_context import BUFFER_STEP
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.architectures import TREES, UNBATCHED
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

BATCHED = [name for name in DRAFTED if name.split(":")[0] in TREES - UNBATCHED]
# Different trees with equally many nodes, and a path in each.
TREE_PARENTS = ([-1, 0, 0, 1, 3], [-1, 0, 1, 2, 3], [-1, 0, 0, 2, 2])
PATHS = ([0, 2], [0, 1, 2, 3, 4], [0])
LATER_PATHS = ([0, 1, 3], [0, 1], [0, 2, 4])


@cache
def target(name: str) -> Target:
    return Target(architectures.build(name))


def trees(seed: int) -> list[DraftTree]:
    return [
        DraftTree.from_parents(prompt_of(5, seed=seed + row), parents)
        for row, parents in enumerate(TREE_PARENTS)
    ]


def prefilled(of: Target, length: int) -> PromptCache:
    held, tokens = of.make_cache(), prompt_of(length)
    of.prefill(mx.array(tokens), held)
    held.extend(tokens)
    return held


# Products of blocks that are turned by Hadamard matrices round several times as much.
CLOSE = {"prism_hadamard_qwen35": 1e-3}


def check_step(
    of: Target, batch: BatchCache, alone: list[PromptCache], paths: list[list[int]], seed: int
) -> None:
    """One step of all texts together equals a step of each alone."""
    drafts = trees(seed)[: len(alone)]
    logits, hidden = of.verify_batch(drafts, batch)
    close = CLOSE.get(of.architecture, 2e-4)
    for row, (draft, held) in enumerate(zip(drafts, alone, strict=True)):
        expected, states = of.verify(draft, held)
        assert mx.allclose(logits[row], expected, rtol=close, atol=close), row
        assert mx.allclose(hidden[row], states, rtol=close, atol=close), row
        tokens = [int(draft.tokens[node].item()) for node in paths[row]]  # type: ignore[arg-type]
        held.commit(paths[row], tokens)
        batch.rows[row].commit(paths[row], tokens)
    batch.commit()
    assert batch.lengths == [len(held) for held in alone]


@pytest.mark.parametrize("name", BATCHED)
def test_together_is_each_alone(name: str) -> None:
    """Prompts around the windows of 16, uneven paths, a text that leaves, one that joins."""
    of = target(name)
    alone = [prefilled(of, length) for length in (5, 37, 15)]
    batch = of.make_batch_cache()
    batch.compose([], alone)
    check_step(of, batch, alone, list(PATHS), 0)
    check_step(of, batch, alone, list(LATER_PATHS), 3)
    joining = prefilled(of, 29)
    batch.compose([2, 0], [joining])
    check_step(of, batch, [alone[2], alone[0], joining], list(PATHS), 6)
    check_step(of, batch, [alone[2], alone[0], joining], list(LATER_PATHS), 9)


@pytest.mark.parametrize("name", ["llama", "llama:sliding"])
def test_a_long_text_that_leaves_takes_its_columns_along(name: str) -> None:
    of = target(name)
    alone = [prefilled(of, length) for length in (5, 2 * BUFFER_STEP + 1, 15)]
    batch = of.make_batch_cache()

    def columns() -> set[int]:
        return {array.shape[2] for layer in batch.state for array in layer}

    batch.compose([], alone)
    check_step(of, batch, alone, list(PATHS), 0)
    assert columns() == {3 * BUFFER_STEP}
    batch.compose([0, 2], [])
    assert columns() == {BUFFER_STEP}
    check_step(of, batch, [alone[0], alone[2]], list(LATER_PATHS), 3)
    joining = prefilled(of, 29)
    batch.compose([1, 0], [joining])
    check_step(of, batch, [alone[2], alone[0], joining], list(PATHS), 6)
    assert columns() == {BUFFER_STEP}


@pytest.mark.parametrize("name", ["deepseek_v41", "minimax_m3_vl", "phi3small"])
def test_what_cannot_be_placed_is_refused(name: str) -> None:
    with pytest.raises(RedrafterError, match=f"'{name}'.* one by one"):
        target(name).make_batch_cache()


def test_positions_that_depend_on_the_length_are_refused() -> None:
    scaling = {"type": "dynamic", "rope_type": "dynamic", "factor": 4.0}
    built = architectures.build("llama", rope_scaling=scaling, max_position_embeddings=160)
    with pytest.raises(RedrafterError, match="one by one"):
        Target(built).make_batch_cache()


def test_columns_are_positions() -> None:
    """Masks of two texts of 2 and 4 tokens, by hand: their own, then ancestors and self."""
    chain = DraftTree.from_parents([1, 2], [-1, 0])
    fork = DraftTree.from_parents([1, 2], [-1, 0])
    batch = BatchTree.stack([chain, fork], [2, 4])
    assert batch.positions(4).tolist() == [[2, 3], [4, 5]]
    assert batch.columns[:, 0, :, 0].tolist() == [[2, 3], [4, 5]]
    drawn = ["".join("x" if seen else "." for seen in row) for row in rows(batch.mask())]
    assert drawn == ["xxx...", "xxxx..", "xxxxx.", "xxxxxx"]
    near = ["".join("x" if seen else "." for seen in row) for row in rows(batch.mask(window=2))]
    assert near == [".xx...", "..xx..", "...xx.", "....xx"]
    own = ["".join("x" if seen else "." for seen in row) for row in rows(batch.mask(chunk=3))]
    assert own == ["xxx...", "...x..", "...xx.", "...xxx"]
    with pytest.raises(ValueError, match="equally many nodes"):
        BatchTree.stack([chain, DraftTree.from_parents([1], [-1])], [2, 4])


def rows(mask: mx.array) -> list[list[bool]]:
    listed: list[list[bool]] = mask.reshape(-1, mask.shape[-1]).tolist()  # type: ignore[assignment]
    return listed
