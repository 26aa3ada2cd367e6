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
