"""Quantised and bounded caches: the same text drafted, plain and from mlx-lm."""

from __future__ import annotations

from typing import Any

import architectures
import mlx.core as mx
import pytest
from architectures import prompt_of
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from text_source import TextSource

from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.quantized import CacheOptions, QuantizedTreeKVCache
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError

TOKENS = 16
# Heads of 32, the smallest group: the table's sizes do not allow it.
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "qwen3": {"head_dim": 32},
    "glm4": {"head_dim": 32},
    "qwen3_next": {"head_dim": 32},
}


def build(name: str) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name, **SIZES.get(name, {})))


def mlx_lms(model: SpeculativeModel, prompt: list[int], **options: Any) -> list[int]:
    steps = generate_step(mx.array(prompt), model.target.model, max_tokens=TOKENS, **options)
    return [int(token) for token, _ in steps]


def ours(
    model: SpeculativeModel,
    prompt: list[int],
    text: list[int] | None,
    cache: PromptCache | None = None,
    **options: Any,
) -> list[int]:
    if cache is None:
        cache = model.target.make_cache(options.get("max_kv_size"))
    source = None
    if text is not None:
        branching = model.target.verifies == "tree"
        source = TextSource(prompt + text, branching=branching)
    config = DecodingConfig(max_tokens=TOKENS, cache_options=CacheOptions(**options))
    drafted = SpeculativeModel(model.target, source)
    return [one.token for one in decode(drafted, prompt, config, cache=cache)]


@pytest.mark.parametrize("start", [0, 12, 17, 25, 1000])
@pytest.mark.parametrize("name", sorted(SIZES))
def test_drafted_is_plain_is_mlx_lms(name: str, start: int) -> None:
    model = build(name)
    options = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": start}
    prompt = prompt_of(13)
    expected = mlx_lms(model, prompt, **options)
    assert ours(model, prompt, None, **options) == expected
    assert ours(model, prompt, expected, **options) == expected


def test_it_makes_a_difference_and_saves_memory() -> None:
    model = build("llama")
    prompt = prompt_of(300)
    options = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 0}
    full, packed = model.make_cache(), model.make_cache()
    exact = ours(model, prompt, None, full)
    rough = ours(model, prompt, None, packed, **options)
    assert exact != rough
    assert all(isinstance(layer, QuantizedTreeKVCache) for layer in packed.layers)
    assert packed.nbytes < full.nbytes / 4


def test_a_second_turn_and_an_edited_history() -> None:
    model = build("llama")
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 20}
    plain, drafted = model.make_cache(), model.make_cache()
    prompt = prompt_of(13)
    for _ in range(3):
        expected = ours(model, prompt, None, plain, **options)
        assert ours(model, prompt, expected, drafted, **options) == expected
        assert drafted.tokens == plain.tokens == [*prompt, *expected[:-1]]
        prompt = [*prompt, *expected[:-1], *prompt_of(5, seed=1)]
    other = prompt_of(9, seed=2)
    assert ours(model, other, None, drafted, **options) == mlx_lms(model, other, **options)


def test_growth_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_redrafter.cache.attention.TreeKVCache.step", 4)
    model = build("qwen3")
    options = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 8}
    prompt = prompt_of(13)
    expected = mlx_lms(model, prompt, **options)
    assert ours(model, prompt, expected, **options) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gemma3_text", {"kv_bits": 4}, "layer 0 keeps a sliding window"),
        ("deepseek_v3", {"kv_bits": 4}, "cannot be quantised"),
        ("gemma2", {"kv_bits": 4}, "cannot be quantised"),
        ("llama", {"kv_bits": 4, "kv_group_size": 128}, "cannot be quantised"),
        ("qwen2", {"kv_bits": 4, "max_kv_size": 16}, "bounded by max_kv_size"),
        ("qwen2", {"kv_bits": 7}, "kv_bits is 7"),
        ("qwen2", {"kv_bits": 4, "kv_group_size": 48}, "kv_group_size is 48"),
        ("qwen2", {"kv_bits": 4, "quantized_kv_start": -1}, "quantized_kv_start is -1"),
        ("qwen2", {"max_kv_size": 2}, "max_kv_size is 2"),
    ],
)
def test_refusals_come_before_anything_is_computed(
    name: str, options: dict[str, Any], message: str
) -> None:
    model = build(name)
    with pytest.raises(RedrafterError, match=message):
        ours(model, prompt_of(4), None, **options)


def test_a_bounded_cache_is_plain_and_mlx_lms() -> None:
    model = build("qwen2")
    for length in (5, 40):
        prompt = prompt_of(length)
        cache: PromptCache | None = None
        expected = mlx_lms(model, prompt, max_kv_size=16)
        cache = model.target.make_cache(max_kv_size=16)
        assert ours(model, prompt, None, cache, max_kv_size=16) == expected
        assert ours(model, prompt, None, cache) == expected  # from the start, it cannot go back
        assert ours(model, prompt, None, max_kv_size=16) == expected
    assert mlx_lms(model, prompt) != expected
    with pytest.raises(RedrafterError, match="leave max_kv_size out"):
        ours(model, prompt, expected, max_kv_size=16)


def fed(model: SpeculativeModel, tokens: list[int], cache: list[Any], pieces: int) -> list[int]:
    """What mlx-lm's model writes after tokens that its own cache is given in pieces."""
    rest, token, text = tokens[:-1], tokens[-1], []
    for start in range(0, len(rest), pieces):
        model.target.model(mx.array([rest[start : start + pieces]]), cache=cache)
    for _ in range(TOKENS):
        logits = model.target.model(mx.array([[token]]), cache=cache)
        token = int(mx.argmax(logits[0, -1]).item())
        text.append(token)
    return text


def test_a_conversation_in_a_bounded_cache_is_mlx_lms_fed_the_same_pieces() -> None:
    model, size = build("qwen2"), 16
    texts = []
    for pieces in (1, 7, 2048):
        config = DecodingConfig(
            TOKENS, prefill_step_size=pieces, cache_options=CacheOptions(max_kv_size=size)
        )
        cache, theirs = model.target.make_cache(size), make_prompt_cache(model.target.model, size)
        prompt, new = prompt_of(30), prompt_of(30)
        for turn in range(3):
            made = [one.token for one in decode(model, prompt, config, cache=cache)]
            assert made == fed(model, new, theirs, pieces)
            new = [made[-1], *prompt_of(9, seed=turn)]
            prompt = [*prompt, *made[:-1], *new]
        texts.append(prompt)
        # Rows that were overwritten do not come back: an edited history is read again.
        again = [one.token for one in decode(model, prompt[:40], config, cache=cache)]
        assert again == fed(model, prompt[:40], make_prompt_cache(model.target.model, size), pieces)
    assert texts[0] != texts[2]  # which pieces they are makes a difference


def test_a_bounded_cache_outlives_a_forward_that_was_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers before the one where it broke off have rows that those after it have not."""
    model, size = build("qwen2"), 64
    config = DecodingConfig(TOKENS, cache_options=CacheOptions(max_kv_size=size))
    cache, prompt = model.target.make_cache(size), prompt_of(12)
    made = [one.token for one in decode(model, prompt, config, cache=cache)]
    prompt = [*prompt, *made, *prompt_of(9, seed=3)]

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    last = model.target.model.model.layers[-1]
    monkeypatch.setattr(type(last.mlp), "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(decode(model, prompt, config, cache=cache))
    monkeypatch.undo()
    # Broken off in the first layer, or in the last.
    first = model.target.model.model.layers[0]
    kind = type(first)
    monkeypatch.setattr(last, "__class__", type("Broken", (kind,), {"__call__": interrupted}))
    with pytest.raises(KeyboardInterrupt):
        list(decode(model, prompt, config, cache=cache))
    monkeypatch.undo()
    expected = [one.token for one in decode(model, prompt, config)]
    assert [one.token for one in decode(model, prompt, config, cache=cache)] == expected


def test_a_model_with_caches_of_its_own_ignores_the_bound_as_in_mlx_lm() -> None:
    model = build("gemma3_text")
    prompt = prompt_of(40)
    expected = mlx_lms(model, prompt, max_kv_size=16)
    assert ours(model, prompt, expected, max_kv_size=16) == expected
