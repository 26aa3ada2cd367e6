"""Caches in files: gone on from as if kept, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
from architectures import prompt_of
from text_source import TextSource

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.quantized import CacheOptions, QuantizedTreeKVCache
from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel

TOKENS = 16
PROMPT = prompt_of(13)
QUANTIZED = CacheOptions(kv_bits=4, kv_group_size=32, quantized_kv_start=8)
# Attention, windows, chunks, recurrence beside windows and beside quantised layers, groups, and
# states of other kinds.
KINDS: dict[str, CacheOptions] = {
    "llama": CacheOptions(),
    "llama quantised": QUANTIZED,
    "llama:sliding": CacheOptions(),
    "llama4": CacheOptions(),
    "mamba": CacheOptions(),
    "qwen3_next": CacheOptions(),
    "qwen3_next quantised": QUANTIZED,
    "recurrent_gemma": CacheOptions(),
    "gear": CacheOptions(),
    "falcon_h1": CacheOptions(),
    "baichuan_m1": CacheOptions(),
    "deepseek_v32": CacheOptions(),
    "deepseek_v41": CacheOptions(),
    "gemma3n": CacheOptions(),
}


def build(kind: str, **overrides: Any) -> SpeculativeModel:
    name, _, quantised = kind.partition(" ")
    sizes = {"head_dim": 32} if quantised else {}
    return SpeculativeModel(architectures.build(name, **sizes, **overrides))


def write(
    model: SpeculativeModel,
    prompt: list[int],
    cache: PromptCache | None = None,
    options: CacheOptions | None = None,
    *,
    draft: bool = False,
    tokens: int = TOKENS,
) -> tuple[list[int], int]:
    """A text, and how much of its prompt was held already."""
    told: list[int] = []
    config = DecodingConfig(tokens, draft=draft, cache_options=options or CacheOptions())
    stream = decode(model, prompt, config, cache=cache, progress=lambda *done: told.append(done[0]))
    return [one.token for one in stream], told[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_cache_is_gone_on_from_as_the_kept_one(kind: str, tmp_path: Path) -> None:
    model, options = build(kind), KINDS[kind]
    kept = model.make_cache()
    text, _ = write(model, PROMPT, kept, options)
    kept.save(tmp_path / "cache")
    other = build(kind)  # as another process has it
    loaded = other.load_cache(tmp_path / "cache")
    assert (loaded.tokens, len(loaded)) == (kept.tokens, len(PROMPT) + TOKENS - 1)
    packed = [isinstance(layer, QuantizedTreeKVCache) for layer in kept.layers]
    assert [isinstance(layer, QuantizedTreeKVCache) for layer in loaded.layers] == packed
    following = [*PROMPT, *text, *prompt_of(5, seed=1)]
    warm, held = write(model, following, kept.copy(), options)
    assert held == len(kept)
    if options == CacheOptions():
        assert write(model, following)[0] == warm
    assert write(other, following, loaded.copy(), options) == (warm, held)
    branching = other.target.verifies == "tree"
    drafting = SpeculativeModel(other.target, TextSource(following + warm, branching=branching))
    assert write(drafting, following, loaded.copy(), options, draft=True) == (warm, held)
    # Back in an earlier turn: as far as the kept one knows, and never further.
    for length in range(1, len(kept) + 1):
        edited = [*PROMPT, *text][:length]
        assert loaded.reachable(length) == kept.copy().reachable(length)
        assert loaded.copy().reuse([*edited, 0, 0]) == kept.copy().reuse([*edited, 0, 0])
    edited = [*PROMPT, *prompt_of(6, seed=2)]
    assert write(other, edited, loaded, options) == write(model, edited, kept, options)


def test_windows_and_states_at_earlier_prompts_are_kept(tmp_path: Path) -> None:
    model = build("gear")
    cache = model.make_cache()
    turns = [PROMPT]
    for seed in range(3):
        text, _ = write(model, turns[-1], cache)
        turns.append([*turns[-1], *text, *prompt_of(300, seed=seed)])
    write(model, turns[-1], cache)
    cache.save(tmp_path / "cache")
    for turn in turns:
        loaded = model.load_cache(tmp_path / "cache")
        asked = [*turn[:-1], 1, 2]
        text, held = write(model, asked, loaded)
        assert held == len(turn) - 1
        assert text == write(model, asked)[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "falcon_h1"])
@pytest.mark.parametrize("drafted", [False, True])
def test_a_text_under_way_leaves_its_committed_tokens(
    kind: str, drafted: bool, tmp_path: Path
) -> None:
    model = build(kind)
    expected, _ = write(model, PROMPT)
    branching = model.target.verifies == "tree"
    source = TextSource(PROMPT + expected, branching=branching) if drafted else None
    writing = SpeculativeModel(model.target, source)
    cache, text = writing.make_cache(), []
    for one in decode(writing, PROMPT, DecodingConfig(TOKENS, draft=drafted), cache=cache):
        text.append(one.token)
        cache.save(tmp_path / "cache")
        loaded = model.load_cache(tmp_path / "cache")
        assert loaded.tokens == cache.tokens
        assert {leaf.offset for layer in loaded.layers for leaf in layer.leaves} == {len(cache)}
        rest, held = write(model, PROMPT + text, loaded, tokens=3)
        assert held >= len(PROMPT) - 1
        assert rest == expected[len(text) : len(text) + 3] or len(text) > TOKENS - 3
    assert text == expected


def test_a_copy_is_saved_as_the_original_and_a_loaded_one_saved_again(tmp_path: Path) -> None:
    model = build("qwen3_next")
    cache = model.make_cache()
    write(model, PROMPT, cache)
    cache.save(tmp_path / "first")
    cache.copy().save(tmp_path / "copy")
    loaded = model.load_cache(tmp_path / "first")
    loaded.save(tmp_path / "again")
    whole = (tmp_path / "first").read_bytes()
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "again").read_bytes() == whole
    (tmp_path / "first").write_bytes(b"")  # nothing of it is read later
    assert write(model, [*PROMPT, 3], loaded) == write(model, [*PROMPT, 3], cache)


def test_an_empty_cache_and_one_that_was_filled_by_hand(tmp_path: Path) -> None:
    model = build("llama:sliding")
    model.make_cache().save(tmp_path / "cache")
    loaded = model.load_cache(tmp_path / "cache")
    assert write(model, PROMPT, loaded) == (write(model, PROMPT)[0], 0)
    cache = model.make_cache()
    list(model.target.fill(PROMPT, cache))
    cache.save(tmp_path / "cache")
    assert model.load_cache(tmp_path / "cache").tokens == PROMPT


def test_a_model_that_replaces_its_own_weights_goes_on_from_its_cache() -> None:
    model = build("gemma3n")
    cache = model.make_cache()
    text, _ = write(model, PROMPT, cache)
    assert write(model, [*PROMPT, *text, 1, 2], cache)[1] == len(PROMPT) + TOKENS - 1


# A draft head's memory


def heads(kind: Callable[[], Drafter] = models.memory_drafter) -> SpeculativeModel:
    return SpeculativeModel(models.build("llama"), kind())


def test_what_a_head_keeps_is_saved_for_the_same_head(tmp_path: Path) -> None:
    model = heads()
    cache = model.make_cache()
    prompt = models.prompt_of(11)
    text, _ = write(model, prompt, cache, draft=True)
    cache.save(tmp_path / "cache")
    loaded = heads().load_cache(tmp_path / "cache")
    assert loaded.memory is not None
    assert cache.memory is not None
    assert loaded.memory.offset == cache.memory.offset == len(cache)
    other = heads()
    following = [*prompt, *text, 5, 6]
    for draft in (True, False):
        loaded = other.load_cache(tmp_path / "cache")
        warm = write(model, following, cache.copy(), draft=draft)
        assert write(other, following, loaded, draft=draft) == warm
        assert warm == (write(model, following)[0], len(cache))


def test_what_another_head_kept_is_left_out(tmp_path: Path) -> None:
    model = heads()
    cache = model.make_cache()
    prompt = models.prompt_of(11)
    write(model, prompt, cache, draft=True)
    cache.save(tmp_path / "cache")
    for other in (
        heads(lambda: models.memory_drafter(seed=1)),
        heads(lambda: models.memory_drafter(window=9)),
        heads(models.build_drafter),
        SpeculativeModel(models.build("llama")),
    ):
        loaded = other.load_cache(tmp_path / "cache")
        assert loaded.memory is None
        assert loaded.tokens == cache.tokens
        assert write(other, [*prompt, 7], loaded, draft=True)[0] == write(model, [*prompt, 7])[0]
