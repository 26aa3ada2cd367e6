"""Texts of several threads on one model object: each is the one that it is alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from mlx.utils import tree_flatten
from thread_texts import PROMPTS, THREADS, config_of, faults, model_of, single, ways_of

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def planner_of() -> Planner:
    """One that drafts wherever it can, each step's draft in the step before."""
    sizes = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
    row = tuple(1.0 + 0.01 * size for size in sizes)
    return Planner(CostModel(sizes, (64,), (row,), {1: 0.05, 4: 0.06, 8: 0.1}, (1.0,)))


@pytest.mark.usefixtures("hasty")
def test_threads_share_a_planner() -> None:
    """Whatever it is told by one while another asks, texts stay what they are."""
    model, config = model_of("llama"), config_of(draft=True, temperature=1.0)
    planner = planner_of()
    expected = single(model, config_of(draft=False, temperature=1.0))

    def planned() -> list[list[int]]:
        return [[t.token for t in decode(model, p, config, planner=planner)] for p in PROMPTS]

    def batched() -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in PROMPTS]
        for index, one in BatchDecoder(model, PROMPTS, config, batch_size=3, planner=planner):
            texts[index].append(one.token)
        return texts

    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(job) for job in (planned, batched) * 8]
        assert [future.result() for future in running] == [expected] * 16


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("name", "rounds"), [("llama:sliding", 3), ("llama+memory", 1), ("qwen3_next", 1)]
)
def test_threads_do_not_get_each_others_numbers(name: str, rounds: int) -> None:
    """Some hundred texts; thousands: python experiments/threads.py."""
    ways = ways_of(model_of(name))
    assert list(faults(ways, rounds)) == []


def test_calls_from_asyncio() -> None:
    ways = ways_of(model_of("llama"))

    async def all_at_once() -> list[list[list[int]]]:
        return await asyncio.gather(*(asyncio.to_thread(way) for way, _ in ways))

    assert asyncio.run(all_at_once()) == [expected for _, expected in ways]


@pytest.mark.parametrize("name", ["llama:sliding", "llama+memory", "qwen3_next"])
@pytest.mark.parametrize("way", ["plain", "drafted", "planned"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_may_be_read_in_several_threads(name: str, way: str, temperature: float) -> None:
    """Nothing is left between two tokens that only the thread before could compute."""
    model = model_of(name)
    planner = planner_of() if way == "planned" else None
    config = config_of(draft=way != "plain", temperature=temperature)
    expected = single(model, config_of(draft=False, temperature=temperature))
    pools = [ThreadPoolExecutor(1) for _ in range(3)]

    def hopping(stream: Iterator[Any]) -> Iterator[Any]:
        done, place = object(), 0
        while (item := pools[place % 3].submit(next, stream, done).result()) is not done:
            place += 1
            yield item

    for prompt, text in zip(PROMPTS, expected, strict=True):
        held = model.make_cache()
        one = decode(model, prompt, config, cache=held, planner=planner)
        assert [token.token for token in hopping(one)] == text
        # And the cache that it leaves may be resumed in another.
        more = [*prompt, *text[:4], 5]
        again = (
            pools[1].submit(list, decode(model, more, config, cache=held, planner=planner)).result()
        )
        cold = decode(model, more, config)
        assert [token.token for token in again] == [token.token for token in cold]
    texts: list[list[int]] = [[] for _ in PROMPTS]
    batch = BatchDecoder(model, PROMPTS, config, batch_size=2, planner=planner)
    for index, token in hopping(iter(batch)):
        texts[index].append(token.token)
    assert texts == expected
    for pool in pools:
        pool.shutdown()


def test_a_text_whose_cache_served_another_ends_with_a_sentence() -> None:
    model, config = model_of("llama"), config_of(draft=True, temperature=0.0)
    held = model.make_cache()
    older = decode(model, PROMPTS[1], config, cache=held)
    next(older)
    newer = decode(model, PROMPTS[2], config, cache=held)
    text = [next(newer).token]
    with pytest.raises(RedrafterError, match="its cache has served another text since"):
        list(older)
    text += [token.token for token in newer]
    assert text == single(model, config)[2]
    assert held.tokens == PROMPTS[2] + text[:-1]


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
def test_threads_that_share_a_cache_make_right_beginnings_and_sentences(kind: str) -> None:
    model, config = model_of(kind), config_of(draft=False, temperature=0.0)
    wanted, held = single(model, config), model.make_cache()
    whole: list[int] = []
    refused: list[str] = []

    def decode_often(place: int) -> None:
        for _ in range(12):
            text: list[int] = []
            try:
                for token in decode(model, PROMPTS[place], config, cache=held):
                    text.append(token.token)
                    if place == 2:  # what others do with it between two steps
                        held.copy()
                whole.append(place)
            except RedrafterError as error:
                refused.append(str(error))
            assert text == wanted[place][: len(text)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(decode_often, range(3)))
    assert whole
    assert all("its cache has served another text" in said for said in refused)


@pytest.mark.parametrize("forget", [PromptCache.reset, lambda held: held.rewind(2)])
@pytest.mark.parametrize("draft", [True, False])
def test_a_text_whose_cache_was_set_back_ends_with_a_sentence(forget: Any, draft: bool) -> None:
    model, config = model_of("llama"), config_of(draft=draft, temperature=0.0)
    held = model.make_cache()
    text = decode(model, PROMPTS[1], config, cache=held)
    next(text)
    next(text)
    forget(held)
    with pytest.raises(RedrafterError, match="or was set back"):
        list(text)
    assert [one.token for one in decode(model, PROMPTS[1], config, cache=held)] == single(
        model, config
    )[1]


def test_caches_belong_to_one_model_object() -> None:
    model, other = model_of("llama"), SpeculativeModel(models.build("llama"))
    with pytest.raises(RedrafterError, match="another load of this one"):
        decode(model, PROMPTS[0], cache=other.make_cache())
    with pytest.raises(RedrafterError, match=r"make one with model.make_cache\(\)"):
        decode(model, PROMPTS[0], cache=[])  # type: ignore[arg-type]
    again = SpeculativeModel(model.target.model)  # the same object may be wrapped twice
    config = config_of(draft=False, temperature=0.0)
    text = decode(model, PROMPTS[0], config, cache=again.make_cache())
    assert [token.token for token in text] == single(model, config)[0]


def test_a_program_ends_while_daemon_threads_decode() -> None:
    """Whatever a thread is at: nothing aborts the process."""
    program = """
import threading
from mlx_redrafter.engine.decode import decode
from thread_texts import PROMPTS, config_of, model_of

model, config = model_of("llama"), config_of(draft=True, temperature=1.0)
begun = threading.Barrier(3)

def work():
    for turn in range(10**9):
        for token in decode(model, PROMPTS[0], config):
            pass
        if turn == 0:
            begun.wait()

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **path},
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def elsewhere(work: Any) -> Any:
    """What a call gives in a thread that has ended by then."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def failing(_tokens: Any, _logits: Any) -> Any:
    raise KeyError("the caller's own")


@pytest.mark.parametrize("name", ["llama:sliding", "llama+memory", "qwen3_next"])
def test_a_cache_goes_on_in_another_thread_after_a_failure(name: str) -> None:
    """A step that was begun and never computed leaves nothing behind that only its thread could."""
    model, config = model_of(name), config_of(draft=True, temperature=0.0)
    prompt = PROMPTS[1]
    [cold] = single(model, config, [prompt])
    for before in ([], cold[:3]):
        held = model.make_cache()
        if before:
            list(decode(model, prompt, replace(config, max_tokens=3), cache=held))
        failed = replace(config, logits_processors=(failing,))
        with pytest.raises(KeyError, match="the caller's own"):
            elsewhere(lambda c=held, f=failed: list(decode(model, prompt, f, cache=c)))
        assert held.tokens == prompt[:-1]
        again = elsewhere(lambda c=held: list(decode(model, prompt, config, cache=c)))
        assert [one.token for one in again] == cold


def test_threads_share_a_model_that_changes_its_own_weights() -> None:
    """Gemma 3n clips some at each forward: nothing that one thread began reaches another."""
    model, config = model_of("gemma3n"), config_of(draft=False, temperature=0.0)
    weights = dict(tree_flatten(model.target.model.parameters()))

    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        elsewhere(lambda: list(decode(model, PROMPTS[1], config, progress=stop)))
    expected = single(model, config)
    assert elsewhere(lambda: single(model, config)) == expected
    now = dict(tree_flatten(model.target.model.parameters()))
    assert all(now[name] is array for name, array in weights.items())
