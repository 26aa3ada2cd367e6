"""Every architecture of mlx-lm that can be made here: drafted == plain == mlx-lm's own text."""

from __future__ import annotations

from functools import cache

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from architectures import DRAFTED, prompt_of
from mlx_lm.generate import generate_step
from text_source import TextSource

from mlx_redrafter.cache.composite import CacheGroup
from mlx_redrafter.cache.layer_cache import LayerCache
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.recurrent import RecurrentCache
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.architectures import COUNTS_ROWS, HYBRIDS, REFUSED, TREES
from mlx_redrafter.target.target import Target

TOKENS = 10
PADDED = [name for name in DRAFTED if name in TREES and name not in COUNTS_ROWS]


@cache
def shared(name: str) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name))


def parts(layer: LayerCache) -> list[LayerCache]:
    return list(layer._parts) if isinstance(layer, CacheGroup) else [layer]


def mlx_lms(model: nn.Module, prompt: list[int]) -> list[int]:
    steps = generate_step(mx.array(prompt), model, max_tokens=TOKENS)
    return [int(token) for token, _ in steps]


def ours(
    model: SpeculativeModel, prompt: list[int], text: list[int] | None, held: PromptCache, seed: int
) -> tuple[list[int], AcceptanceStats, int]:
    """Tokens, statistics and hoped-for acceptances; drafted where the text to hide is given."""
    branching = model.target.verifies == "tree"
    source = None
    if text is not None:
        source = TextSource(prompt + text, branching=branching, seed=seed)
    drafted = SpeculativeModel(model.target, source)
    stats = AcceptanceStats()
    config = DecodingConfig(max_tokens=TOKENS)
    tokens = [one.token for one in decode(drafted, prompt, config, cache=held, stats=stats)]
    assert held.tokens == [*prompt, *tokens[:-1]]
    return tokens, stats, source.hoped if source else 0


@pytest.mark.parametrize("length", [5, 37], ids=["shorter", "longer"])
@pytest.mark.parametrize("name", DRAFTED)
def test_drafted_is_plain_is_mlx_lms(name: str, length: int) -> None:
    """Prompts shorter and longer than the windows of 16; then a second turn on warm caches."""
    model = shared(name)
    prompt = prompt_of(length)
    plain, drafted = model.make_cache(), model.make_cache()
    for turn in range(2):
        expected = mlx_lms(model.target.model, prompt)
        assert ours(model, prompt, None, plain, turn)[0] == expected
        tokens, stats, hoped = ours(model, prompt, expected, drafted, turn)
        assert tokens == expected
        assert hoped - TextSource.max_depth <= stats.accepted <= hoped
        prompt = prompt + expected[:-1] + prompt_of(7, seed=1)


def test_windows_that_mlx_lm_has_wider_while_a_prompt_is_read() -> None:
    """A kept cache may change PLaMo 3's text past its window; drafts do not change it again."""
    model = shared("plamo3")
    plain, drafted, prompt, colds = model.make_cache(), model.make_cache(), prompt_of(20), []
    for turn in range(8):
        kept, _, _ = ours(model, prompt, None, plain, turn)
        tokens, stats, _ = ours(model, prompt, kept, drafted, turn)
        assert tokens == kept
        assert stats.accepted > 0
        colds.append(mlx_lms(model.target.model, prompt) == kept)
        prompt = prompt + kept + prompt_of(9, seed=turn)
    assert colds[0]
    assert not all(colds)


@pytest.mark.parametrize("name", PADDED)
def test_drafted_is_plain_where_attention_is_given_too_many_rows(name: str) -> None:
    target = shared(name).target
    prompt = prompt_of(37)
    expected, _, _ = ours(shared(name), prompt, None, target.make_cache(), 0)
    before, target._context.pads_keys = target._context.pads_keys, True
    try:
        tokens, stats, hoped = ours(shared(name), prompt, expected, target.make_cache(), 0)
    finally:
        target._context.pads_keys = before
    assert tokens == expected
    assert hoped - TextSource.max_depth <= stats.accepted <= hoped


@pytest.mark.parametrize("name", ["llama", "internlm3"])
def test_rotary_positions_that_depend_on_the_length(name: str) -> None:
    """Beyond their limit, which is within this text, tokens are verified one by one."""
    scaling = {"type": "dynamic", "rope_type": "dynamic", "factor": 4.0}
    built = architectures.build(name, rope_scaling=scaling, max_position_embeddings=160)
    model = SpeculativeModel(built)
    for length in (9, 26, 158):  # the limit is 128 tokens sooner
        prompt = prompt_of(length)
        held = model.make_cache()
        expected = mlx_lms(built, prompt)
        source = TextSource(prompt + expected, branching=True)
        source.seconds = 1.0
        drafted = SpeculativeModel(model.target, source)
        stats = AcceptanceStats()
        config = DecodingConfig(max_tokens=TOKENS)
        tokens = [one.token for one in decode(drafted, prompt, config, cache=held, stats=stats)]
        assert tokens == expected
        assert (stats.accepted > 0) == (stats.draft_seconds > 0) == (length < 100)


def test_teaching_is_what_decoding_sees() -> None:
    target = shared("gemma3n").target
    tokens = mx.array([prompt_of(12), prompt_of(12, seed=1)])
    logits, hidden = target.teach(tokens)
    assert hidden.shape == (2, 12, target.hidden_size)
    expected = target.model(tokens[1:], cache=target.make_cache().seams)
    assert mx.allclose(logits[1:], expected, rtol=1e-4, atol=1e-4)


def test_so_many_are_taken() -> None:
    modes = {name: shared(name).target.verifies for name in DRAFTED}
    trees = {name.split(":")[0] for name, mode in modes.items() if mode == "tree"}
    chains = {name.split(":")[0] for name, mode in modes.items() if mode == "chain"}
    assert trees == TREES
    assert len(trees) >= 95
    assert chains == set()
    for name in trees:  # what is said of a model's layers is so
        kept = [part for layer in shared(name).make_cache().layers for part in parts(layer)]
        assert any(isinstance(part, RecurrentCache) for part in kept) == (name in HYBRIDS), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_models_decode_plainly(name: str) -> None:
    model = SpeculativeModel(architectures.build(name))
    refusal = model.target.refusal
    assert refusal is not None
    assert f"'{name}'" in refusal
    assert "attention layers" in refusal
    with pytest.raises(RedrafterError, match="load it without a drafter"):
        SpeculativeModel(model.target, TextSource([1], branching=True))
    prompt = prompt_of(21)
    expected = mlx_lms(model.target.model, prompt)
    assert ours(model, prompt, None, model.make_cache(), 0)[0] == expected


def test_an_unknown_architecture_is_verified_as_a_chain() -> None:
    model = architectures.build("llama")
    model.__class__ = type("Model", (type(model),), {"__module__": "someone.elses"})
    target = Target(model)
    assert (target.verifies, target.refusal) == ("chain", None)
    prompt = prompt_of(20)
    expected = mlx_lms(model, prompt)
    wrapped = SpeculativeModel(target)
    assert ours(wrapped, prompt, expected, wrapped.make_cache(), 0)[0] == expected


def test_a_cache_of_an_unknown_kind_is_refused_by_layer_and_decodes_plainly() -> None:
    class OwnCache(type(architectures.build("llama").make_cache()[0])):  # type: ignore[misc]
        pass

    model = architectures.build("llama")
    make = model.make_cache
    object.__setattr__(model, "make_cache", lambda: [*make()[:1], OwnCache()])
    wrapped = SpeculativeModel(model)
    assert wrapped.target.refusal is not None
    assert "layer 1 of the architecture 'llama' keeps a OwnCache" in wrapped.target.refusal
    held = wrapped.make_cache()
    prompt = prompt_of(9)
    for _ in range(2):
        expected = mlx_lms(model, prompt)
        assert ours(wrapped, prompt, None, held, 0)[0] == expected
        prompt = prompt + expected[:-1] + prompt_of(5, seed=2)
    edited = [*prompt[:4], *prompt_of(8, seed=3)]
    assert ours(wrapped, edited, None, held, 0)[0] == mlx_lms(model, edited)
