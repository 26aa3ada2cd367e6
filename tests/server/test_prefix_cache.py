"""What earlier requests left is gone on from, never changed, and never another's text."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.decode import DecodingConfig, decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.server.work.prefix_cache import SHORTEST, PrefixCache
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree
from models import prompt_of


@cache
def target(kind: str) -> Target:
    return Target(models.mamba() if kind == "mamba" else models.shared(kind))


def filled(kind: str, tokens: list[int]) -> PromptCache:
    made = target(kind).make_cache()
    for _ in target(kind).fill(tokens, made):
        pass
    return made


def continued(kind: str, prompt: list[int], cache: PromptCache | None = None) -> list[int]:
    config = DecodingConfig(max_tokens=6)
    model = SpeculativeModel(target(kind))
    return [token.token for token in decode(model, prompt, config, cache=cache)]


@pytest.mark.parametrize("kind", ["llama", "llama:sliding", "deepseek_v2", "mamba"])
def test_a_copy_goes_its_own_way(kind: str) -> None:
    prompt = prompt_of(40)
    original = filled(kind, prompt[:-1])
    copied = original.copy()
    alone = continued(kind, prompt)
    assert continued(kind, prompt, copied) == alone
    other = [*prompt, *prompt_of(9, seed=5)]
    assert continued(kind, other, original.copy()) == continued(kind, other)
    assert original.tokens == prompt[:-1]
    assert continued(kind, prompt, original) == alone


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_it_says_how_much_of_a_prompt_is_known(kind: str) -> None:
    kept = PrefixCache(1 << 30)
    kept.put(filled(kind, prompt_of(40)))
    within = [*prompt_of(40)[:30], *prompt_of(9, seed=3)]
    for prompt in (prompt_of(9), prompt_of(40), [*prompt_of(40), *prompt_of(9, seed=3)], within):
        found = kept.take(prompt)
        assert kept.known(prompt) == (0 if found is None else len(found))


@pytest.mark.parametrize("kind", ["llama", "llama:sliding", "mamba"])
def test_prefixes_that_interleave_never_mix(kind: str) -> None:
    rng = np.random.default_rng(11)
    shared = prompt_of(SHORTEST + 9)
    kept = PrefixCache(1 << 30)
    prompts = [[*shared, *prompt_of(int(n), seed=int(n))] for n in rng.integers(1, 30, 6)]
    used = 0
    for prompt in [prompts[i] for i in rng.integers(0, len(prompts), 14)]:
        found = kept.take(prompt)
        if found is not None:
            used += 1
            assert found.tokens == prompt[: len(found.tokens)]
            assert len(found.tokens) < len(prompt)
        cache = found or target(kind).make_cache()
        text = continued(kind, prompt, cache)
        assert text == continued(kind, prompt)
        kept.put(cache)
    assert used >= 8


def test_the_longest_prefix_is_found() -> None:
    long, short = prompt_of(60), prompt_of(60)[:30]
    kept = PrefixCache(1 << 30)
    kept.put(filled("llama", [*short, 1, 2, 3]))
    kept.put(filled("llama", long))
    found = kept.take([*long, 5])
    assert found is not None
    assert found.tokens == long
    found = kept.take([*short, 1, 2, 9, 9])
    assert found is not None
    assert found.tokens == [*short, 1, 2]
    assert kept.take(prompt_of(40, seed=9)) is None
    found = kept.take(long)
    assert found is not None
    assert len(found) == len(long) - 1, "the last token is left over"


def test_a_text_takes_the_place_of_its_beginning() -> None:
    kept = PrefixCache(1 << 30)
    text = prompt_of(60)
    kept.put(filled("llama", text[:30]))
    kept.put(filled("llama", text))
    assert len(kept) == 1
    kept.put(filled("llama", text[:30]))
    assert len(kept) == 1
    kept.put(filled("llama", [*text[:30], 1, 1]))
    assert len(kept) == 2


def test_recurrent_state_is_kept_at_the_ends_of_turns() -> None:
    kept = PrefixCache(1 << 30)
    text = prompt_of(70)
    kept.put(filled("mamba", text[:30]))
    kept.put(filled("mamba", text))
    assert len(kept) == 2, "what the longer one does not know stays"
    found = kept.take([*text[:50], 9])
    assert found is not None
    assert found.tokens == text[:30]


def test_nothing_gives_way_to_what_only_a_step_could_be_taken_back_to() -> None:
    """Who uses a prefix gets a copy, which knows the starts of the last steps only."""
    kept = PrefixCache(1 << 30)
    text, of = prompt_of(33), target("mamba")
    kept.put(filled("mamba", text[:30]))
    longer = filled("mamba", text[:28])
    of.verify(DraftTree.from_parents(text[28:], [-1, 0, 1, 2, 3]), longer)
    longer.commit(range(5), text[28:])
    assert longer.reachable(30) == 30
    kept.put(longer)
    found = kept.take([*text[:30], 9])
    assert found is not None
    assert found.tokens == text[:30]


def test_the_least_recently_used_goes_first() -> None:
    texts = [prompt_of(40, seed=seed) for seed in range(3)]
    caches = [filled("llama", text) for text in texts]
    kept = PrefixCache(2 * caches[0].nbytes)
    kept.put(caches[0])
    kept.put(caches[1])
    assert kept.take([*texts[0], 1]) is not None
    kept.put(caches[2])
    assert kept.nbytes <= 2 * caches[0].nbytes
    assert kept.take([*texts[1], 1]) is None
    assert kept.take([*texts[0], 1]) is not None
    nothing = PrefixCache(0)
    nothing.put(caches[0])
    assert len(nothing) == 0


@pytest.mark.parametrize("kind", ["llama", "llama:sliding", "mamba"])
def test_a_sequence_leaves_a_batch_with_what_it_has(kind: str) -> None:
    prompts = [prompt_of(40), prompt_of(25, seed=2)]
    batch = target(kind).make_batch_cache()
    batch.compose([], [filled(kind, prompt[:-1]) for prompt in prompts])
    for place, prompt in enumerate(prompts):
        taken = target(kind).make_cache()
        batch.extract(place, taken)
        assert taken.tokens == prompt[:-1]
        assert continued(kind, prompt, taken) == continued(kind, prompt)
    mx.eval(batch.state)
