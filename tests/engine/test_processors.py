"""Functions of the caller's that change logits: asked once a token, in order, drafted or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import HostTree

PROMPT = models.prompt_of(7)
TOKENS = 24
OTHERS = (models.build_drafter, models.memory_drafter)


class Counting:
    """Prefers a token by how often it was asked, and takes no text twice or out of order.

    So does a grammar, which moves on with each token and knows nothing of texts that break it.
    """

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        text: Any = tokens.tolist()
        assert not self.texts or text[:-1] == self.texts[-1]
        self.texts.append(text)
        preferred = len(self.texts) ** 2 % 7
        return logits + 4.0 * (mx.arange(logits.shape[-1]) == preferred)


def counting(**options: Any) -> DecodingConfig:
    return DecodingConfig(TOKENS, logits_processors=(Counting(),), **options)


def ids(model: SpeculativeModel, config: DecodingConfig) -> list[int]:
    return [one.token for one in decode(model, PROMPT, config)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_one_that_counts_gives_its_text_drafted(name: str, temperature: float) -> None:
    target = models.mamba() if name == "mamba" else models.shared(name)
    options: dict[str, Any] = {"sampling": SamplingConfig(temperature, seed=3, logprobs=2)}
    plain = list(decode(SpeculativeModel(target), PROMPT, counting(draft=False, **options)))
    text = PROMPT + [one.token for one in plain]
    for trees in range(4):
        source = models.ScriptedSource(text, seed=trees, siblings=2 * trees)
        made = list(decode(SpeculativeModel(target, source), PROMPT, counting(**options)))
        assert [one.token for one in made] == text[len(PROMPT) :]
        assert sum(one.from_draft for one in made) > TOKENS // 4
        for one, wanted in zip(made, plain, strict=True):
            assert one.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert [token for token, _ in one.top_logprobs] == [t for t, _ in wanted.top_logprobs]


@pytest.mark.parametrize("make", OTHERS)
def test_heads_and_copies_ask_it_no_more(make: Any) -> None:
    target = models.shared("llama")
    plain = ids(SpeculativeModel(target), counting(draft=False))
    for shape in (BeamShape(1, 3), BeamShape(3, 4, 7)):
        config = counting(beam=shape, copy=True)
        assert ids(SpeculativeModel(target, make()), config) == plain


def test_in_a_batch() -> None:
    target = models.shared("llama")
    plain = ids(SpeculativeModel(target), counting(draft=False))
    greedy = ids(SpeculativeModel(target), DecodingConfig(TOKENS))
    drafting = SpeculativeModel(target, models.build_drafter())
    configs = [counting(copy=True), DecodingConfig(TOKENS, copy=True), counting()]
    made: list[list[int]] = [[], [], []]
    for place, one in BatchDecoder(drafting, [PROMPT] * 3, configs):
        made[place].append(one.token)
    assert made == [plain, greedy, plain]


def test_the_first_child_with_a_token() -> None:
    tree = HostTree((5, 7, 9, 7, 7), (-1, 0, 1, 0, 1), (0.0,) * 5)
    assert [tree.child(0, 7), tree.child(1, 7), tree.child(0, 9)] == [1, 4, None]


@pytest.mark.parametrize("limit", [1, 2, 7, 12, None])
def test_it_is_not_asked_what_follows_the_last_token(limit: int | None) -> None:
    """The last token that max_tokens allows, or where there is no such limit, the end of text."""
    target = models.shared("llama")
    plain = ids(SpeculativeModel(target), counting(draft=False))
    source = models.ScriptedSource(PROMPT + plain, full=True, max_depth=6)
    if limit is None:
        end = plain[10]
        wanted = plain[: plain.index(end) + 1]
        config = replace(counting(), eos_token_ids=frozenset([end]))
    else:
        wanted = plain[:limit]
        config = replace(counting(), max_tokens=limit)
    assert ids(SpeculativeModel(target, source), config) == wanted
    (processor,) = config.logits_processors
    assert isinstance(processor, Counting)
    assert processor.texts[-1] == PROMPT + wanted[:-1]
