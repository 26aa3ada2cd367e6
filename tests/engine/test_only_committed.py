"""Only what is committed influences a text: not what a rejected branch computed, nor its place."""

from __future__ import annotations

from functools import cache

import architectures
import mlx.core as mx
import pytest

import models
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.decode import DecodingConfig, decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree

POISON = 63
COUNT = 14


def text_of(model: SpeculativeModel, prompt: list[int], config: DecodingConfig) -> list[int]:
    return [one.token for one in decode(model, prompt, config)]


class Poisoned(models.ScriptedSource):
    """The truth, and beside it a branch of a token whose embedding is not a number."""

    def __call__(self, state: DraftInput) -> DraftTree:
        tree = super().__call__(state)
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        return DraftTree.from_parents([*tokens, POISON], [*parents, 0])


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_branch_that_computes_no_numbers_spoils_nothing(value: float, temperature: float) -> None:
    model = models.build("llama")
    model.model.embed_tokens.weight[POISON] = value
    prompt = [token % POISON for token in models.prompt_of(9)]
    config = DecodingConfig(COUNT, SamplingConfig(temperature=temperature, seed=4))
    plain = text_of(SpeculativeModel(model), prompt, config)
    assert POISON not in plain
    source = Poisoned([*prompt, *plain], full=True, siblings=0)
    stats = AcceptanceStats()
    drafted = decode(SpeculativeModel(model, source), prompt, config, stats=stats)
    assert [one.token for one in drafted] == plain
    assert stats.steps == COUNT - 1  # each step was taken again, plainly
    texts: dict[int, list[int]] = {0: [], 1: []}
    source = Poisoned([*prompt, *plain], full=True, siblings=0)
    for place, one in BatchDecoder(SpeculativeModel(model, source), [prompt, prompt], config):
        texts[place].append(one.token)
    assert list(texts.values()) == [plain, plain]


class PoisonedOnce(models.ScriptedSource):
    """One draft of a token whose embedding is not a number, then none that is right."""

    poisoned = False

    def __call__(self, state: DraftInput) -> DraftTree:
        token = 1 if self.poisoned else POISON
        self.poisoned = True
        return DraftTree.from_parents([int(state.root.item()), token, token], [-1, 0, 1])


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("asking", [False, True])
def test_such_a_branch_spoils_no_shorter_text_of_a_batch(name: str, *, asking: bool) -> None:
    """Its rows lie among the columns that a longer text's forward looks at."""
    model = models.build(name)
    model.model.embed_tokens.weight[POISON] = mx.nan
    processors = (Hearing(),) if asking else ()
    prompts = [[t % POISON for t in models.prompt_of(n, seed=1)] for n in (5, 9, 30)]
    plain = [text_of(SpeculativeModel(model), one, DecodingConfig(8)) for one in prompts]
    configs = [
        DecodingConfig(8),
        DecodingConfig(8),
        DecodingConfig(8, logits_processors=processors),
    ]
    texts: list[list[int]] = [[], [], []]
    drafting = SpeculativeModel(model, PoisonedOnce([], full=True))
    for place, one in BatchDecoder(drafting, prompts, configs):
        texts[place].append(one.token)
    assert texts == plain


class Hearing:
    """Changes nothing, and takes no token twice or out of order."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        text = tokens.tolist()
        assert not self.heard or text[:-1] == self.heard
        self.heard = [int(token) for token in text]
        return logits


class Drawing:
    """The likeliest token, and how often it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        self.asked += 1
        return mx.argmax(logprobs, axis=-1)


def test_callers_functions_hear_nothing_of_such_a_step() -> None:
    model = models.build("llama")
    model.model.embed_tokens.weight[POISON] = mx.nan
    prompt = [token % POISON for token in models.prompt_of(9)]
    plain = text_of(SpeculativeModel(model), prompt, DecodingConfig(COUNT))
    source = Poisoned([*prompt, *plain], full=True, siblings=0)
    drafting = SpeculativeModel(model, source)
    hearing = Hearing()
    config = DecodingConfig(COUNT, logits_processors=(hearing,))
    assert text_of(drafting, prompt, config) == plain
    assert hearing.heard == [*prompt, *plain[:-1]]
    # In a batch any text's branch may be the one that spoils a step.
    hearing, drawing = Hearing(), Drawing()
    configs = [
        DecodingConfig(COUNT),
        DecodingConfig(COUNT, logits_processors=(hearing,), draft=False),
        DecodingConfig(COUNT, sampler=drawing),
    ]
    texts: list[list[int]] = [[], [], []]
    for place, one in BatchDecoder(drafting, [prompt] * 3, configs):
        texts[place].append(one.token)
    assert texts == [plain] * 3
    assert hearing.heard == [*prompt, *plain[:-1]]
    assert drawing.asked == COUNT


@cache
def gpt(name: str) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name))


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode"])
def test_a_text_ends_with_its_table_of_positions(name: str) -> None:
    model = gpt(name)
    positions = model.target.max_positions
    assert positions is not None
    prompt = [token % 50 for token in range(positions - 5)]
    for limit in (-1, 100):
        config = DecodingConfig(limit)
        plain = text_of(model, prompt, config)
        assert len(plain) == 6  # the last is chosen at the last position, and never fed
        truth = models.ScriptedSource([*prompt, *plain, 1, 2, 3], full=True, vocab_size=50)
        *text, last = decode(SpeculativeModel(model.target, truth), prompt, config)
        assert [one.token for one in [*text, last]] == plain
        assert last.finish_reason == "length"
    with pytest.raises(RedrafterError, match=f"{positions + 1} tokens.*positions for {positions}"):
        decode(model, [1] * (positions + 1), DecodingConfig(3))
