"""Outputs of a target's layers, which heads may read besides the final hidden state."""

from __future__ import annotations

import architectures as every
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

import models
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

PROMPT = models.prompt_of(9)
TREE = DraftTree.from_parents([3, 5, 7, 9, 11], [-1, 0, 1, 0, 3])
PATHS = ((0, 1, 2), (0, 3, 4))


# Whose layers return several streams of hidden states, or are run in a loop.
SOME = ("llama", "gemma3_text", "qwen3_moe", "qwen3_next", "falcon_h1", "phi3", "gpt_oss")
UNREADABLE = {"iquestloopcoder", "deepseek_v41", "gemma3n"}


def test_they_are_what_the_layers_return() -> None:
    model = models.build("llama")
    tokens = mx.array(PROMPT)
    x, wanted = model.model.embed_tokens(tokens[None]), []
    for layer in model.layers:
        x = layer(x, mask="causal")
        wanted.append(x)
    _, hidden = Target(model).teach(tokens[None], layers=(0, 1))
    parts = mx.split(hidden, 3, axis=-1)
    for found, expected in zip(parts, [*wanted, model.model.norm(x)], strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("architecture", every.DRAFTED)
def test_all_architectures_but_a_few_can_be_read(architecture: str) -> None:
    target = Target(every.build(architecture))
    layers = (0, len(target.model.layers) - 1)
    if architecture in UNREADABLE:
        with pytest.raises(RedrafterError, match=f"'{architecture}' do not return one hidden"):
            target.check_layers(layers)
    else:
        target.check_layers(layers)


@pytest.mark.parametrize("architecture", SOME)
def test_a_trees_nodes_have_what_their_paths_alone_would(architecture: str) -> None:
    target = Target(every.build(architecture))
    layers = (0, len(target.model.layers) - 1)
    prompt, cache = every.prompt_of(9), target.make_cache()
    list(target.fill(prompt, cache))
    whole = as_numpy(target.verify(TREE, cache, layers)[1])
    for path in PATHS:
        tokens = mx.array([int(TREE.tokens[node].item()) for node in path])
        raw = make_prompt_cache(target.model)
        target.model(mx.array(prompt)[None], cache=raw)
        alone = as_numpy(target.teach(tokens[None], raw, layers)[1][0])
        np.testing.assert_allclose(whole[list(path)], alone, atol=1e-3 * max(1, abs(alone).max()))


def as_numpy(values: mx.array) -> np.ndarray:
    return np.array(values.astype(mx.float32))


def test_quantised_targets_are_read_too() -> None:
    model = models.build("llama")
    fits = lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[1] % 32 == 0  # noqa: E731
    nn.quantize(model, group_size=32, bits=4, class_predicate=fits)
    target = Target(model)
    _, hidden = target.verify(DraftTree.root_only(mx.array([4])), target.make_cache(), (1,))
    assert hidden.shape == (1, 2 * models.HIDDEN)


def test_layers_that_are_not_there_are_refused() -> None:
    target = Target(models.shared("llama"))
    with pytest.raises(RedrafterError, match=r"reads the layers 1, 5 .* this model has 2"):
        target.check_layers((1, 5))
