"""Ways to decode that threads take at once on one model object, and what each has to give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, islice, repeat
from threading import Barrier
from typing import Any

import architectures
import mlx.core as mx

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target

PROMPTS = [models.prompt_of(length, seed=length) for length in (3, 14, 9, 1)]
# Said twice, so that there is something to copy.
REPEATING = [2 * models.prompt_of(length, seed=length) for length in (5, 8, 11, 3)]
LENGTH = 7
OTHERS = ("qwen3_next", "lfm2", "gemma3n")
WITH_MEMORY = "+memory"
THREADS = 8

Texts = list[list[int]]
Way = Callable[[], Texts]


@cache
def model_of(name: str) -> SpeculativeModel:
    """A target of a kind with a drafter: a recurrent one, or one that remembers the text."""
    kind = name.removesuffix(WITH_MEMORY)
    target = Target(architectures.build(kind) if kind in OTHERS else models.shared(kind))
    if name.endswith(WITH_MEMORY):
        return SpeculativeModel(target, models.memory_drafter())
    drafter = models.build_drafter(
        hidden_size=target.hidden_size, vocab_size=target.vocab_size, seed=1, lookback=2
    )
    return SpeculativeModel(target, drafter)


def config_of(*, draft: bool, temperature: float, **changes: Any) -> DecodingConfig:
    """How the texts are decoded, with penalties."""
    sampling = SamplingConfig(
        temperature, seed=3, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2
    )
    return DecodingConfig(LENGTH, sampling, draft=draft, beam=BeamShape(2, 3), **changes)


def single(model: SpeculativeModel, config: DecodingConfig, prompts: Texts = PROMPTS) -> Texts:
    """Each prompt by itself."""
    return [[one.token for one in decode(model, prompt, config)] for prompt in prompts]


def together(model: SpeculativeModel, config: DecodingConfig, prompts: Texts = PROMPTS) -> Texts:
    """The prompts in a batch that is smaller than their number."""
    texts: Texts = [[] for _ in prompts]
    for index, one in BatchDecoder(model, prompts, config, batch_size=3):
        texts[index].append(one.token)
    return texts


def in_turns(model: SpeculativeModel, config: DecodingConfig) -> Texts:
    """The prompts as turns of one conversation, in a cache that goes on from turn to turn."""
    held, told, texts = model.make_cache(), [], []
    for prompt in PROMPTS:
        told = [*told, *prompt]
        texts.append([one.token for one in decode(model, told, config, cache=held)])
        told = [*told, *texts[-1]]
    return texts


def lean(tokens: mx.array, logits: mx.array) -> mx.array:
    """A logits processor: the token after the last one is likelier."""
    ids = mx.arange(logits.shape[-1])
    return logits + 2.0 * (ids == (tokens[-1] + 1) % logits.shape[-1])


def ways_of(model: SpeculativeModel, *, batches: bool = True) -> list[tuple[Way, Texts]]:
    """Ways to decode four texts each, and what plain decoding alone makes of them."""
    ways: list[tuple[Way, Texts]] = []
    for temperature in (0.0, 1.0):
        plain = config_of(draft=False, temperature=temperature)
        drafted = config_of(draft=True, temperature=temperature)
        copied = config_of(draft=True, temperature=temperature, copy=True)
        processed = config_of(draft=False, temperature=temperature, logits_processors=(lean,))
        leaning = config_of(draft=True, temperature=temperature, logits_processors=(lean,))
        expected, repeated = single(model, plain), single(model, plain, REPEATING)
        turns, leant = in_turns(model, plain), single(model, processed)
        for config in (plain, drafted):
            ways.append((lambda c=config: single(model, c), expected))
            ways.append((lambda c=config: in_turns(model, c), turns))
            if batches:
                ways.append((lambda c=config: together(model, c), expected))
        ways.append((lambda c=copied: single(model, c, REPEATING), repeated))
        ways.append((lambda c=leaning: single(model, c), leant))
        if batches:
            ways.append((lambda c=copied: together(model, c, REPEATING), repeated))
    return ways


def faults(ways: list[tuple[Way, Texts]], rounds: int, threads: int = THREADS) -> Iterator[str]:
    """Take each way so many times, all threads at once; tell of every text that is another.

    Yields:
        A description of each way that gave another text, or failed.
    """
    tasks = chain.from_iterable(repeat(list(enumerate(ways)), rounds))
    with ThreadPoolExecutor(threads) as pool:
        while running := [(n, pool.submit(way), due) for n, (way, due) in islice(tasks, 256)]:
            for number, future, expected in running:
                error = future.exception()
                if error is not None:
                    yield f"way {number}: {error!r}"
                elif future.result() != expected:
                    yield f"way {number}: {future.result()} instead of {expected}"
        together_at_last = Barrier(threads)
        list(pool.map(_leave, repeat(together_at_last, threads)))


def _leave(others: Barrier) -> None:
    """In each thread: give mlx's streams back, or the process may abort at its exit."""
    others.wait()
    mx.clear_streams()
