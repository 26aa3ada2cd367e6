"""The search against one that is written out, and its trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_beam import (
    Node,
    slow_advance,
    slow_layout,
    slow_logits,
    slow_search,
)

import models
from mlx_redrafter.drafting.beam_search import BeamSearch
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.drafting.kinds import prepare
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.shape import MAX_LENGTH, BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.noise import noise_rows
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree


def search(
    drafter: Drafter,
    shape: BeamShape,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    root: int = 3,
    text: Sequence[int] = (),
) -> tuple[DraftTree, list[Node], list[int]]:
    """The tree found, and what the slow search finds: nodes and the order to lay them out in."""
    # Flatter, so that no filter leaves fewer tokens than beams: the rest would tie.
    drafter.lm_head[-1].weight = 0.15 * drafter.lm_head[-1].weight
    rng = np.random.default_rng(seed)
    target = Target(models.shared("llama"))
    hidden = rng.standard_normal(models.HIDDEN).astype(np.float32)
    noise = (
        noise_rows(sampling.seed, 5, shape.length + 1, models.VOCAB)
        if sampling.temperature
        else None
    )
    state = DraftInput(mx.array([root]), mx.array(hidden), noise, text)
    tree = BeamSearch(prepare(drafter), target.embed, shape, sampling)(state)
    nodes = slow_search(
        drafter,
        np.array(target.model.model.embed_tokens.weight),
        shape,
        sampling,
        hidden.astype(np.float64),
        root,
        None if noise is None else np.array(noise),
        text,
    )
    return tree, nodes, slow_layout(nodes, shape)


DRAFTERS: dict[str, dict[str, Any]] = {
    "apple": {},
    "two blocks": {"num_draft_layers": 2},
    "no blocks": {"num_draft_layers": 0},
    "plain sum": {"rnn": False},
    "projected": {"exit_dim": 24},
    "small head": {"draft_vocab_size": 20},
    "small head, projected, plain sum": {
        "draft_vocab_size": 20,
        "exit_dim": 24,
        "rnn": False,
    },
}
SHAPES = [
    BeamShape(1, 1),
    BeamShape(1, 5),
    BeamShape(5, 1),
    BeamShape(4, 5),
    BeamShape(6, 3),
    BeamShape(20, 2),
]
BUDGETED = [BeamShape(4, 5, budget) for budget in (1, 3, 4, 5, 6, 9, 15, 19, 20, 50)]
NARROW = [
    *(BeamShape(4, 5, None, leaves) for leaves in (1, 2, 3, 6, 16, 17)),
    BeamShape(4, 5, 3, 4),
    BeamShape(4, 5, 7, 4),
]
SAMPLINGS = [
    SamplingConfig(),
    SamplingConfig(1.0, seed=1),
    SamplingConfig(0.5, top_k=9, seed=2),
    SamplingConfig(1.5, min_p=0.001, seed=3),
    SamplingConfig(2.0, top_p=0.999, seed=4),
]


def assert_same(tree: DraftTree, nodes: list[Node], order: list[int]) -> None:
    wanted = [nodes[n] for n in order]
    assert tree.tokens.tolist() == [node.token for node in wanted]
    assert tree.depths.tolist() == [node.depth for node in wanted]
    assert tree.parents.tolist() == [
        -1 if node.parent == -1 else order.index(node.parent) for node in wanted
    ]
    np.testing.assert_allclose(
        np.array(tree.log_probs), [node.total for node in wanted], atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_search_equals_the_slow_one(kind: str, sampling: SamplingConfig) -> None:
    for seed, shape in enumerate(SHAPES[:5]):
        drafter = models.build_drafter(seed=seed, **DRAFTERS[kind])
        tree, nodes, order = search(drafter, shape, sampling, seed=seed)
        assert len(tree) == 1 + shape.nodes
        assert tree.max_depth == shape.length
        assert_same(tree, nodes, order)


@pytest.mark.parametrize("shape", [BeamShape(1, 4), BeamShape(4, 3)], ids=str)
@pytest.mark.parametrize("rnn", [True, False])
@pytest.mark.parametrize("text", [[], [7], [5, 9, 7], [11, 2, 5, 9, 7]], ids=len)
def test_a_search_that_looks_back_equals_the_slow_one(
    text: list[int], rnn: bool, shape: BeamShape
) -> None:
    drafter = models.build_drafter(lookback=3, rnn=rnn)
    tree, nodes, order = search(drafter, shape, SamplingConfig(), text=text)
    assert_same(tree, nodes, order)


def test_roots_behind_texts_of_different_length_are_searched_together() -> None:
    drafter = models.build_drafter(lookback=3)
    embed = Target(models.shared("llama")).embed
    beam = BeamSearch(prepare(drafter), embed, BeamShape(1, 4), SamplingConfig())
    hidden = mx.random.normal((3, models.HIDDEN), key=mx.random.key(4))
    states = [
        DraftInput(mx.array([3]), hidden[row], None, text)
        for row, text in enumerate(([], [5, 9], [1, 2, 5, 9, 7]))
    ]
    for state, tree in zip(states, beam.together(states), strict=True):
        assert tree.tokens.tolist() == beam(state).tokens.tolist()
    same = [DraftInput(mx.array([3]), hidden[0], None, text) for text in ([4, 9, 7], [9, 9, 9, 7])]
    found = [np.array(tree.log_probs) for tree in beam.together(same)]
    assert not np.allclose(found[0], found[1])


@pytest.mark.parametrize("shape", BUDGETED, ids=lambda shape: str(shape.node_budget))
def test_a_budget_keeps_the_likeliest_nodes(shape: BeamShape) -> None:
    for seed in range(6):
        drafter = models.build_drafter(seed=seed)
        tree, nodes, _ = search(drafter, shape, SamplingConfig(), seed=seed)
        totals = sorted((node.total for node in nodes[1:]), reverse=True)[: shape.nodes]
        np.testing.assert_allclose(
            sorted(tree.log_probs.tolist()[1:], reverse=True), totals, atol=1e-3
        )


@pytest.mark.parametrize("shape", [*BUDGETED, *NARROW], ids=str)
def test_budgeted_layout_equals_the_slow_one(shape: BeamShape) -> None:
    for seed, sampling in enumerate(SAMPLINGS[:3]):
        drafter = models.build_drafter(seed=seed, draft_vocab_size=30)
        assert_same(*search(drafter, shape, sampling, seed=seed))


def assert_is_a_tree(tree: DraftTree, shape: BeamShape) -> None:
    tokens, parents, depths = (array.tolist() for array in (tree.tokens, tree.parents, tree.depths))
    totals = tree.log_probs.tolist()
    assert len(tree) == 1 + shape.nodes
    assert (parents[0], depths[0], totals[0]) == (-1, 0, 0.0)
    lines = {0: {0}}
    for node in range(1, len(tree)):
        parent = parents[node]
        assert 0 <= parent < node, "a child comes behind its parent"
        assert depths[node] == depths[parent] + 1 <= shape.length
        assert totals[node] < totals[parent], "and scores below it"
        lines[node] = lines[parent] | {node}
    assert [set(np.flatnonzero(row)) for row in np.array(tree.ancestors)] == list(lines.values())
    children = list(zip(parents, tokens, strict=True))
    assert len(set(children)) == len(children), "siblings differ"
    assert all(0 <= token < models.VOCAB for token in tokens)
    assert np.isfinite(totals).all()
    leaves = set(range(len(tree))) - set(parents)
    assert len(leaves) <= tree.leaf_bound == max(1, min(shape.leaves, len(tree) - 1))
    assert shape.max_leaves is None or len(leaves) <= shape.max_leaves


@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    shape=st.builds(
        BeamShape,
        st.integers(1, 20),
        st.integers(1, 8),
        st.none() | st.integers(1, 60),
        st.none() | st.integers(1, 20),
    ),
    sampling=st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 0.01, 1.0, 50.0]),
        top_p=st.sampled_from([1.0, 0.01, 0.9]),
        top_k=st.sampled_from([0, 1, 3]),
        min_p=st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 2**63 - 1),
    ),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1.0, 100.0]),
    draft_vocab_size=st.sampled_from([None, 20]),
)
def test_every_search_gives_a_tree(
    shape: BeamShape,
    sampling: SamplingConfig,
    seed: int,
    scale: float,
    draft_vocab_size: int | None,
) -> None:
    """Whatever the filters leave over, and for heads that are flat or certain."""
    drafter = models.build_drafter(draft_vocab_size=draft_vocab_size, seed=seed)
    drafter.lm_head[-1].weight = drafter.lm_head[-1].weight * scale
    rng = np.random.default_rng(seed)
    state = DraftInput(
        root=mx.array([int(rng.integers(models.VOCAB))]),
        hidden=mx.array(rng.standard_normal(models.HIDDEN).astype(np.float32)),
        noise=noise_rows(seed, 3, shape.length, models.VOCAB) if sampling.temperature else None,
    )
    embed = Target(models.shared("llama")).embed
    assert_is_a_tree(BeamSearch(prepare(drafter), embed, shape, sampling)(state), shape)


def test_a_deep_search_stays_a_tree() -> None:
    """Scores of -100 a level still leave room for the difference between parent and child."""
    drafter = models.build_drafter()
    drafter.lm_head[-1].weight = drafter.lm_head[-1].weight * 1e3
    shape = BeamShape(8, MAX_LENGTH)
    state = DraftInput(
        mx.array([1]), mx.random.normal((models.HIDDEN,), key=mx.random.key(1)), None
    )
    embed = Target(models.shared("llama")).embed
    assert_is_a_tree(BeamSearch(prepare(drafter), embed, shape, SamplingConfig())(state), shape)


def test_the_best_final_beam_is_laid_out_first() -> None:
    shape = BeamShape(4, 5)
    for seed in range(5):
        tree, nodes, _ = search(models.build_drafter(seed=seed), shape, SamplingConfig(), seed=seed)
        assert tree.depths.tolist()[: shape.length + 1] == list(range(shape.length + 1))
        assert tree.parents.tolist()[: shape.length + 1] == list(range(-1, shape.length))
        best = max(node.total for node in nodes if node.depth == shape.length)
        assert tree.log_probs.tolist()[shape.length] == pytest.approx(best, rel=1e-4)


def test_proposed_tokens_come_from_the_small_head() -> None:
    drafter = models.build_drafter(draft_vocab_size=7, seed=5)
    tree, _, _ = search(drafter, BeamShape(4, 5), SamplingConfig())
    assert set(tree.tokens.tolist()[1:]) <= set(drafter.draft_tokens.tolist())


def test_with_the_same_noise_the_search_guesses_what_will_be_drawn() -> None:
    """A drafter that knows the target's distribution finds the draw, however hot."""
    drafter = models.build_drafter()
    sampling = SamplingConfig(5.0, seed=9)
    tree, nodes, _ = search(drafter, BeamShape(1, 1), sampling, seed=9)
    logits = None
    embeddings = np.array(models.shared("llama").model.embed_tokens.weight)
    hidden = np.random.default_rng(9).standard_normal(models.HIDDEN).astype(np.float32)
    state = slow_advance(drafter, embeddings[3], np.zeros(models.HIDDEN))
    logits = slow_logits(drafter, hidden, state)
    draw = np.argmax(logits / 5.0 + np.array(noise_rows(9, 5, 1, models.VOCAB))[0])
    assert tree.tokens.tolist()[1] == draw != np.argmax(logits)
    assert nodes[1].token == draw


def test_nothing_is_evaluated_in_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = models.build_drafter()
    embed = Target(models.shared("llama")).embed
    beam = BeamSearch(prepare(drafter), embed, BeamShape(), SamplingConfig())

    def refuse(*args: object) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr(mx, "eval", refuse)
    monkeypatch.setattr(mx, "async_eval", refuse)
    tree = beam(DraftInput(mx.array([1]), mx.zeros((models.HIDDEN,)), None))
    assert len(tree) == 21


@pytest.mark.parametrize(
    ("values", "nodes"),
    [((4, 5), 20), ((4, 5, 7), 7), ((4, 5, 20), 20), ((4, 5, 21), 20), ((1, 1, 1), 1)],
)
def test_number_of_nodes(values: tuple[int, ...], nodes: int) -> None:
    assert BeamShape(*values).nodes == nodes


@pytest.mark.parametrize("name", ["width", "length", "node_budget"])
@pytest.mark.parametrize("value", [0, -1, 1025, 2.0, True, "4"])
def test_bad_shapes_are_refused(name: str, value: object) -> None:
    with pytest.raises(RedrafterError, match=name) as caught:
        BeamShape(**{name: value})
    assert "\n" not in str(caught.value)


def test_too_long_a_beam_is_refused() -> None:
    assert BeamShape(length=MAX_LENGTH).length == MAX_LENGTH
    assert BeamShape(128, MAX_LENGTH).nodes == 8192
    with pytest.raises(RedrafterError, match="may draft 8192 at most: choose a smaller width"):
        BeamShape(1024, MAX_LENGTH, 15)
    with pytest.raises(RedrafterError, match="length"):
        BeamShape(length=MAX_LENGTH + 1)


def test_beams_wider_than_the_head_are_refused() -> None:
    drafter = models.build_drafter(draft_vocab_size=8)
    embed = Target(models.shared("llama")).embed
    BeamSearch(prepare(drafter), embed, BeamShape(width=8), SamplingConfig())
    with pytest.raises(RedrafterError, match="knows only 8 tokens"):
        BeamSearch(prepare(drafter), embed, BeamShape(width=9), SamplingConfig())


def test_a_compiled_search_drafts_the_same_tree() -> None:
    drafter = RecurrentDrafter(DrafterConfig(16, 40, 24, 1, rnn=True, draft_vocab_size=30))
    embedding = mx.random.normal((40, 16), key=mx.random.key(1))
    state = DraftInput(
        root=mx.array([3]),
        hidden=mx.random.normal((16,), key=mx.random.key(2)),
        noise=mx.random.gumbel((4, 40), key=mx.random.key(3)),
    )
    trees = [
        BeamSearch(
            prepare(drafter),
            lambda tokens: mx.take(embedding, tokens, axis=0),
            BeamShape(3, 3, 7),
            SamplingConfig(temperature=0.8),
            compiled=compiled,
        )(state)
        for compiled in (False, True)
    ]
    for name in ("tokens", "parents", "depths", "ancestors"):
        assert mx.array_equal(getattr(trees[0], name), getattr(trees[1], name))
