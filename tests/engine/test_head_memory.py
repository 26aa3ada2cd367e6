"""What a head with a memory keeps of a text, on every way that a text may take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from decoding_cases import LENGTH, PROMPT, SAMPLED, TEXT, config_of, plain

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.drafting.next_draft import accepted_leaf
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken
from mlx_redrafter.engine.head_memory import HeadMemory
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.tree import DraftTree, accept

TARGET = models.shared("llama:sliding")
GREEDY = DecodingConfig(LENGTH, beam=BeamShape(3, 3, 6))


def model_of(*, beside: Sequence[object] = (), seed: int = 0, window: int = 8) -> SpeculativeModel:
    return SpeculativeModel(
        TARGET, models.memory_drafter(seed=seed, window=window), beside=list(beside)
    )


def memory_of(model: SpeculativeModel) -> HeadMemory:
    assert model.memory is not None
    return model.memory


def rows_of(model: SpeculativeModel, cache: PromptCache) -> list[np.ndarray]:
    """What a draft would see of a cache's text."""
    view = memory_of(model).view(cache, mx.array([3], dtype=mx.int32))
    return [np.array(view.keys), np.array(view.values)]


def read_anew(model: SpeculativeModel, tokens: Sequence[int]) -> PromptCache:
    """A cache with these tokens, read as a prompt."""
    cache = model.make_cache()
    memory_of(model).open(cache)
    list(model.target.fill(tokens, cache, 4, model.memory))
    return cache


def assert_remembers(model: SpeculativeModel, cache: PromptCache) -> None:
    """The memory holds what it would if the text had been read at once."""
    assert cache.memory is not None
    assert cache.memory.offset == len(cache)
    for found, expected in zip(
        rows_of(model, cache), rows_of(model, read_anew(model, cache.tokens)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("window", [3, 99])
def test_accepted_tokens_are_remembered_as_if_they_had_been_read(window: int) -> None:
    truth = models.ScriptedSource(PROMPT + TEXT, full=True)
    model = model_of(beside=[truth], window=window)
    cache = model.make_cache()
    made = list(decode(model, PROMPT, config_of(), cache=cache))
    assert [one.token for one in made] == TEXT[:LENGTH]
    assert sum(one.from_draft for one in made) > LENGTH // 2
    assert_remembers(model, cache)


def test_plain_steps_are_remembered_too() -> None:
    model = model_of()
    cache = model.make_cache()
    config = DecodingConfig(LENGTH, SAMPLED, beam=BeamShape(1, 1))
    assert [one.token for one in decode(model, PROMPT, config, cache=cache)] == TEXT[:LENGTH]
    assert_remembers(model, cache)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_text_that_is_given_up_is_forgotten_from_there(stop: int) -> None:
    model = model_of()
    cache = model.make_cache()
    stream = decode(model, PROMPT, GREEDY, cache=cache)
    for _ in range(stop):
        next(stream)
    stream.close()
    assert len(cache) == len(PROMPT) + stop - 1
    assert_remembers(model, cache)


def test_a_turn_that_differs_is_read_from_the_first_difference() -> None:
    model = model_of()
    cache = model.make_cache()
    list(decode(model, PROMPT, GREEDY, cache=cache))
    edited = [*PROMPT[:6], 9, 8, 7, 6]
    told: list[int] = []
    list(decode(model, edited, GREEDY, cache=cache, progress=lambda done, _: told.append(done)))
    assert told[0] == 6
    assert_remembers(model, cache)


def test_what_was_written_without_drafts_is_read_again_for_them() -> None:
    model = model_of()
    cache = model.make_cache()
    first = [one.token for one in decode(model, PROMPT, GREEDY, cache=cache)]
    plainly = DecodingConfig(LENGTH, draft=False)
    second = [*PROMPT, *first, 5, 6]
    answer = [one.token for one in decode(model, second, plainly, cache=cache)]
    assert cache.memory is not None
    known = cache.memory.offset
    assert known < len(cache)
    third, told = [*second, *answer, 7], []
    list(decode(model, third, GREEDY, cache=cache, progress=lambda done, _: told.append(done)))
    assert told[0] == known
    assert_remembers(model, cache)


def test_another_head_reads_the_text_anew() -> None:
    one, other = model_of(), model_of(seed=1)
    cache = one.make_cache()
    list(decode(one, PROMPT, GREEDY, cache=cache))
    list(decode(other, PROMPT, GREEDY, cache=cache))
    assert_remembers(other, cache)


@pytest.mark.parametrize("make", [PromptCache.copy, copy.deepcopy, copy.copy])
def test_copies_of_a_cache_go_their_own_ways(make: Callable[[PromptCache], PromptCache]) -> None:
    model = model_of()
    cache = model.make_cache()
    list(decode(model, PROMPT, GREEDY, cache=cache))
    copied = make(cache)
    before = rows_of(model, copied)
    list(decode(model, [*PROMPT[:4], 9, 9, 9], GREEDY, cache=cache))
    for found, expected in zip(rows_of(model, copied), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_remembers(model, cache)


def test_texts_that_join_and_leave_a_batch_take_their_memory_along() -> None:
    model = model_of()
    prompts = [models.prompt_of(n, seed=n) for n in (3, 12, 7)]
    engine = Engine(model, batch_size=2)
    numbers = [engine.add(prompt, config_of(6 + 5 * i)) for i, prompt in enumerate(prompts)]
    texts: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, NewToken):
                texts[event.sequence].append(event.decoded.token)
    for index, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
        assert texts[number] == plain(prompt, 6 + 5 * index)


@pytest.mark.parametrize("choices", [[5, 6, 8, 1, 3], [9, 1, 1, 4, 1], [2, 2, 2, 2, 2]])
def test_a_draft_made_early_sees_what_it_would_see_later(choices: list[int]) -> None:
    model = model_of()
    memory = memory_of(model)
    cache = read_anew(model, PROMPT)
    tokens, parents = [7, 5, 6, 9, 8], [-1, 0, 1, 0, 2]
    tree = DraftTree.from_parents(tokens, parents)
    _, hidden = model.target.verify(tree, cache, memory.layers)
    states, chosen = memory.fused(hidden), mx.array(choices, dtype=mx.int32)
    end = accepted_leaf(tree, chosen)
    root = mx.take(chosen, end[None])
    early = memory.next_view(cache, tree, states, end, root)
    search = model.source(BeamShape(3, 3), SAMPLED, timed=False)
    assert search is not None
    (one,) = search.together([DraftInput(root, mx.take(states, end, axis=0), None, memory=early)])
    path = accept(tokens, parents, choices)
    kept = [tokens[node] for node in path]
    memory.keep(mx.take(states, mx.array(path), axis=0), mx.array(kept), cache)
    cache.commit(path, kept)
    later = memory.view(cache, root)
    (other,) = search.together([DraftInput(root, states[path[-1]], None, memory=later)])
    assert early.position.tolist() == later.position.tolist()
    assert one.tokens.tolist() == other.tokens.tolist()
    assert mx.allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_compiled_drafts_see_rows_of_few_sizes() -> None:
    model = model_of(window=600)
    assert model.prepared is not None
    bound = memory_of(model)._head
    padded = HeadMemory(bound, model.target.embed, 600, padded=True, weights=bound)
    cache = read_anew(model, PROMPT)
    cache.memory.owner = padded
    root = mx.array([3], dtype=mx.int32)
    view, exact = padded.view(cache, root), memory_of(model).view(cache, root)
    assert view.keys.shape[2] == 256
    assert int(view.mask.sum()) == exact.keys.shape[2] == len(PROMPT)
    search = model.source(BeamShape(2, 3), SAMPLED, timed=False)
    state = mx.random.normal((24,), key=mx.random.key(2))
    one, other = (
        search.together([DraftInput(root, state, None, memory=seen)])[0] for seen in (view, exact)
    )
    assert one.tokens.tolist() == other.tokens.tolist()
    assert mx.allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_a_head_of_another_model_is_refused() -> None:
    with pytest.raises(RedrafterError, match="reads the layers 0, 7 of its model"):
        SpeculativeModel(TARGET, models.memory_drafter(layers=(0, 7)))
