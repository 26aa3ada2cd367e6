from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.calibration import _filled_cache
from mlx_redrafter.target.target import PREFILL_STEP, Observer, Target
from mlx_redrafter.tree import DraftTree, HostTree

TOLERANCE = 1e-4
PROMPT = models.prompt_of(3 * models.WINDOW)


def host(tree: DraftTree) -> HostTree:
    return HostTree(
        tuple(tree.tokens.tolist()), tuple(tree.parents.tolist()), tuple(tree.log_probs.tolist())
    )


def line_to(tree: HostTree, node: int) -> list[int]:
    """Nodes on the way from the root to a node."""
    line = [node]
    while tree.parents[line[0]] != -1:
        line.insert(0, tree.parents[line[0]])
    return line


def plain_logits(model: nn.Module, tokens: list[int]) -> np.ndarray:
    """Logits after the last token, by an ordinary forward over everything."""
    return np.array(model(mx.array([tokens]))[0, -1])


def assert_verified(
    model: nn.Module, target: Target, committed: list[int], tree: DraftTree, cache: PromptCache
) -> None:
    """Every row of a verified tree is what a plain forward over its path gives."""
    logits, hidden = target.verify(tree, cache)
    assert logits.shape == (len(tree), target.vocab_size)
    assert hidden.shape == (len(tree), target.hidden_size)
    shape = host(tree)
    for node, row in enumerate(np.array(logits)):
        path = [shape.tokens[n] for n in line_to(shape, node)]
        wanted = plain_logits(model, committed + path)
        np.testing.assert_allclose(row, wanted, atol=TOLERANCE)
        assert row.argmax() == wanted.argmax()


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_tree_rows_equal_plain_forwards(name: str) -> None:
    """Verify a tree, commit a path that is no run of rows, verify another, and so on."""
    untouched = models.build(name)
    target = Target(models.build(name))
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    cache.extend(PROMPT)
    committed = list(PROMPT)
    for tokens, parents, path in (
        # Two branches interleaved: the path 0, 2, 5, 6 leaves gaps.
        ([7, 11, 12, 11, 13, 14, 15, 16], [-1, 0, 0, 1, 1, 2, 5, 3], [0, 2, 5, 6]),
        ([9, 3, 4, 5, 3, 6, 1], [-1, 0, 1, 0, 3, 2, 4], [0, 3, 4]),
        # A chain laid out in order, as the likeliest path is.
        ([20, 21, 22, 23], [-1, 0, 1, 2], [0, 1]),
        ([2, 40, 41], [-1, 0, 0], [0]),
    ):
        tree = DraftTree.from_parents(tokens, parents)
        assert_verified(untouched, target, committed, tree, cache)
        cache.commit(path, [tokens[node] for node in path])
        committed += [tokens[node] for node in path]
        assert cache.tokens == committed
        assert {layer.offset for layer in cache.layers} == {len(committed)}


@pytest.mark.parametrize("name", models.WINDOWED)
def test_windows_are_shorter_than_the_prompt(name: str) -> None:
    cache = Target(models.shared(name)).make_cache()
    windows = [layer.window for layer in cache.layers]
    assert models.WINDOW in windows
    assert None in windows
    assert len(PROMPT) > models.WINDOW


@pytest.mark.parametrize("name", ["llama", "llama:sliding", "gemma3_text", "deepseek_v2"])
@pytest.mark.parametrize("length", [0, 1, models.WINDOW - 2, models.WINDOW, models.WINDOW + 1])
def test_tree_behind_a_prefix_of_any_length(name: str, length: int) -> None:
    """Windows begin to cut in the middle of a tree, or there is no prefix at all."""
    untouched = models.build(name)
    target = Target(models.shared(name))
    prompt = models.prompt_of(length)
    cache = target.make_cache()
    if prompt:
        target.prefill(mx.array(prompt), cache)
    cache.extend(prompt)
    tree = DraftTree.from_parents([5, 6, 7, 8, 9, 10], [-1, 0, 0, 1, 2, 3])
    assert_verified(untouched, target, prompt, tree, cache)


def test_tree_deeper_than_the_window() -> None:
    name = "llama:sliding"
    untouched = models.build(name)
    target = Target(models.shared(name))
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    cache.extend(PROMPT)
    depth = models.WINDOW + 4
    chain = models.prompt_of(depth, seed=1)
    tree = DraftTree.from_parents([1, *chain, 2, 3], [-1, *range(depth), depth, depth - 1])
    assert_verified(untouched, target, PROMPT, tree, cache)


def test_verifying_commits_nothing() -> None:
    target = Target(models.shared("llama:sliding"))
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    cache.extend(PROMPT)
    tree = DraftTree.from_parents([5, 6, 7, 8], [-1, 0, 0, 1])
    first, _ = target.verify(tree, cache)
    other = DraftTree.from_parents([9, 1, 2, 3, 4, 5], [-1, 0, 1, 2, 3, 4])
    mx.eval(target.verify(other, cache)[0])
    again, _ = target.verify(tree, cache)
    assert cache.tokens == PROMPT
    assert {layer.offset for layer in cache.layers} == {len(PROMPT)}
    np.testing.assert_array_equal(np.array(first), np.array(again))


def test_a_single_row_is_an_ordinary_step() -> None:
    untouched = models.build("gemma3_text")
    target = Target(models.shared("gemma3_text"))
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    cache.extend(PROMPT)
    logits, _ = target.verify(DraftTree.root_only(mx.array([4])), cache)
    np.testing.assert_allclose(
        np.array(logits[0]), plain_logits(untouched, [*PROMPT, 4]), atol=TOLERANCE
    )


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_the_model_itself_is_unchanged(name: str) -> None:
    """Outputs, with and without mlx-lm's own caches, and parameter names."""
    untouched, hooked = models.build(name), models.build(name)
    names = [key for key, _ in tree_flatten(hooked.parameters())]
    kind = type(hooked)
    Target(hooked)
    assert [key for key, _ in tree_flatten(hooked.parameters())] == names
    assert isinstance(hooked, kind)
    tokens = mx.array([PROMPT])
    assert mx.array_equal(untouched(tokens), hooked(tokens))
    caches = make_prompt_cache(untouched), make_prompt_cache(hooked)
    assert [type(layer) for layer in caches[0]] == [type(layer) for layer in caches[1]]
    for chunk in (tokens[:, :10], tokens[:, 10:11], tokens[:, 11:]):
        assert mx.array_equal(untouched(chunk, cache=caches[0]), hooked(chunk, cache=caches[1]))


def test_a_hooked_model_saves_and_loads_the_same_weights() -> None:
    model = models.build("qwen3")
    weights = tree_flatten(model.parameters())
    Target(model)
    fresh = models.build("qwen3", seed=1)
    fresh.load_weights(tree_flatten(model.parameters()), strict=True)
    assert all(
        mx.array_equal(a, b)
        for (_, a), (_, b) in zip(weights, tree_flatten(fresh.parameters()), strict=True)
    )


def test_hooking_twice_is_harmless() -> None:
    model = models.build("llama:sliding")
    first = Target(model)
    classes = [type(module) for _, module in model.named_modules()]
    second = Target(model)
    assert [type(module) for _, module in model.named_modules()] == classes
    untouched = models.build("llama:sliding")
    tree = DraftTree.from_parents([5, 6, 7, 8], [-1, 0, 0, 2])
    for target in (first, second, first):
        cache = target.make_cache()
        target.prefill(mx.array(PROMPT), cache)
        cache.extend(PROMPT)
        assert_verified(untouched, target, PROMPT, tree, cache)


def test_hooking_one_model_leaves_another_of_its_class_alone() -> None:
    one, other = models.build("llama"), models.build("llama")
    before = [type(module) for _, module in other.named_modules()]
    Target(one)
    assert [type(module) for _, module in other.named_modules()] == before
    assert type(one.model) is not type(other.model)


def test_an_interrupted_verification_leaves_the_seams_shut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.build("llama")
    target = Target(model)
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    cache.extend(PROMPT)
    tree = DraftTree.from_parents([5, 6, 7], [-1, 0, 0])

    def interrupt(self: nn.Module, *args: object, **kwargs: object) -> mx.array:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model.layers[1].mlp), "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            target.verify(tree, cache)
    tokens = mx.array([PROMPT])
    assert mx.array_equal(model(tokens), models.build("llama")(tokens))
    assert_verified(models.build("llama"), target, PROMPT, tree, cache)


def test_teach_is_the_plain_causal_forward() -> None:
    model = models.build("gemma2")
    target = Target(models.build("gemma2"))
    batch = mx.array([models.prompt_of(12, seed=seed) for seed in range(3)])
    logits, hidden = target.teach(batch)
    assert mx.array_equal(logits, model(batch))
    assert hidden.shape == (3, 12, target.hidden_size)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere2"])
def test_hidden_states_are_what_the_output_rows_read(name: str) -> None:
    model = models.build(name)
    target = Target(model)
    cache = target.make_cache()
    target.prefill(mx.array(PROMPT), cache)
    logits, hidden = target.verify(DraftTree.from_parents([1, 2, 3], [-1, 0, 0]), cache)
    head = model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear
    rows = np.array(head(hidden))
    order = np.argsort(rows, axis=-1, kind="stable")
    # Whatever comes after the rows (scaling, soft caps) keeps their order.
    assert np.all(np.diff(np.take_along_axis(np.array(logits), order, axis=-1)) >= 0)


def test_embeddings_are_the_models_own() -> None:
    model = models.build("llama")
    tokens = mx.array([[3, 4], [5, 6]])
    assert mx.array_equal(Target(model).embed(tokens), model.model.embed_tokens.weight[tokens])


def test_sizes_and_precision() -> None:
    target = Target(models.build("qwen2", vocab_size=80, hidden_size=16))
    assert (target.vocab_size, target.hidden_size) == (80, 16)
    assert target.dtype == mx.float32
    assert target.refusal is None


def test_long_contexts_are_filled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over thousands of tokens at once would need memory for all pairs."""
    target = Target(models.build("llama"))
    sizes: list[int] = []
    prefill = target.prefill

    def snapshot(tokens: mx.array, cache: PromptCache, observer: Observer | None) -> None:
        sizes.append(tokens.shape[0])
        prefill(tokens, cache, observer)

    monkeypatch.setattr(target, "prefill", snapshot)
    cache = target.make_cache()
    assert list(target.fill(PROMPT[:11], cache, 4)) == [4, 8, 11]
    assert sizes == [4, 4, 3]
    assert cache.tokens == PROMPT[:11]
    sizes.clear()
    assert list(target.fill([], cache)) == []
    held = _filled_cache(SpeculativeModel(target), PREFILL_STEP + 5)
    assert sizes == [PREFILL_STEP, 5]
    assert len(held) == PREFILL_STEP + 5


def test_a_module_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(RedrafterError, match="hidden states cannot be read"):
        Target(nn.Linear(4, 4))


def test_what_is_no_model_is_refused_by_its_kind() -> None:
    """A path belongs to ``load``, and a model from ``load`` has its target in it already."""
    model = SpeculativeModel(models.shared("llama"))
    wrong: Any
    for wrong in ("models/pocket", None, model, model.target):
        with pytest.raises(RedrafterError, match=f"and is a {type(wrong).__name__}: "):
            Target(wrong)


def test_a_model_that_is_not_causal_is_refused_by_name() -> None:
    module = pytest.importorskip("mlx_lm.models.phi3small")
    model = models.build("llama")
    model.__class__ = type("Model", (type(model),), {"__module__": module.__name__})
    target = Target(model)
    assert target.refusal is not None
    assert "phi3small" in target.refusal
    assert target.verifies == "nothing"
    with pytest.raises(RedrafterError, match=r"phi3small.*without a drafter"):
        SpeculativeModel(target, models.build_drafter())
