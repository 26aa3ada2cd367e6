"""Texts that join and leave between steps, each with what is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import architectures
import pytest

import models
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken, PromptRead, SequenceFailed
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig

PROMPTS = [models.prompt_of(length, seed=length) for length in (5, 33, 1, 18, 9)]
CONFIGS = [
    DecodingConfig(14, beam=BeamShape(2, 3)),
    DecodingConfig(9, SamplingConfig(1.0, seed=4), beam=BeamShape(3, 2, 5)),
    DecodingConfig(12, SamplingConfig(repetition_penalty=1.3), draft=False),
    DecodingConfig(11, SamplingConfig(0.7, top_k=20, seed=9, frequency_penalty=0.4)),
    DecodingConfig(16, SamplingConfig(0.7, top_p=0.8, seed=1, logprobs=1), beam=BeamShape(1, 4)),
]


@cache
def model_of(name: str, *, drafter: bool = True) -> SpeculativeModel:
    hybrid = name in ("lfm2", "mamba")
    target = architectures.build(name) if hybrid else models.shared(name)
    model = SpeculativeModel(target)
    sizes = {"hidden_size": model.target.hidden_size, "vocab_size": model.target.vocab_size}
    head = models.build_drafter(seed=1, lookback=2, **sizes) if drafter else None
    return SpeculativeModel(model.target, head)


def alone(name: str, prompt: Sequence[int], config: DecodingConfig) -> list[int]:
    config = replace(config, draft=False)
    return [one.token for one in decode(model_of(name), prompt, config)]


class Reader:
    """Takes an engine's steps and sorts what they report."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.texts: dict[int, list[int]] = {}
        self.reasons: dict[int, str | None] = {}
        self.read: dict[int, list[tuple[int, int]]] = {}
        self.failed: dict[int, Exception] = {}

    def step(self) -> list[int]:
        """The numbers of the sequences that made tokens."""
        made = []
        for event in self.engine.step():
            if isinstance(event, PromptRead):
                self.read.setdefault(event.sequence, []).append((event.done, event.total))
            elif isinstance(event, NewToken):
                self.texts.setdefault(event.sequence, []).append(event.decoded.token)
                self.reasons[event.sequence] = event.decoded.finish_reason
                made.append(event.sequence)
            else:
                self.failed[event.sequence] = event.error
        return made

    def finish(self) -> None:
        while self.engine.busy:
            self.step()


@pytest.mark.parametrize("name", ["llama", "llama:sliding", "lfm2", "mamba"])
@pytest.mark.parametrize("apart", [0, 1, 3])
def test_texts_join_at_any_time_with_settings_of_their_own(name: str, apart: int) -> None:
    reader = Reader(Engine(model_of(name), batch_size=4))
    numbers = []
    for prompt, config in zip(PROMPTS, CONFIGS, strict=True):
        numbers.append(reader.engine.add(prompt, config))
        for _ in range(apart):
            reader.step()
    reader.finish()
    for number, prompt, config in zip(numbers, PROMPTS, CONFIGS, strict=True):
        assert reader.texts[number] == alone(name, prompt, config)
        assert reader.reasons[number] == "length"
    assert not reader.engine.busy
    assert reader.engine.step() == []


@pytest.mark.parametrize("when", range(1, 9))
def test_texts_leave_at_any_time_and_the_others_go_on(when: int) -> None:
    reader = Reader(Engine(model_of("llama"), prompts_first=True))
    numbers = [reader.engine.add(p, c) for p, c in zip(PROMPTS[:3], CONFIGS[:3], strict=True)]
    for _ in range(when):
        reader.step()
    reader.engine.stop(numbers[0])
    left = len(reader.texts.get(numbers[0], []))
    late = reader.engine.add(PROMPTS[3], CONFIGS[3])
    reader.engine.stop(numbers[0])  # again: left alone
    reader.finish()
    expected = [alone("llama", p, c) for p, c in zip(PROMPTS[:4], CONFIGS[:4], strict=True)]
    assert reader.texts[numbers[0]] == expected[0][:left]
    assert [reader.texts[n] for n in (*numbers[1:], late)] == expected[1:]


def test_prompts_are_read_in_pieces_while_others_go_on() -> None:
    config = DecodingConfig(20, prefill_step_size=4)
    reader = Reader(Engine(model_of("llama")))
    first = reader.engine.add(PROMPTS[0], config)
    while len(reader.texts.get(first, [])) < 2:
        reader.step()
    second = reader.engine.add(PROMPTS[1], config)
    beside = 0
    while second not in reader.texts:
        beside += first in reader.step()
    assert beside >= 8  # a step of the first with each piece of the second's 32 tokens
    assert reader.read[second] == [(done, 32) for done in range(0, 33, 4)]
    reader.finish()
    assert reader.texts[second] == alone("llama", PROMPTS[1], config)


def test_prompts_wait_where_there_is_no_room() -> None:
    reader = Reader(Engine(model_of("llama"), batch_size=1))
    numbers = [reader.engine.add(prompt, CONFIGS[0]) for prompt in PROMPTS[:3]]
    order: list[int] = []
    while reader.engine.busy:
        order += reader.step()
    assert order == sorted(order)
    assert set(order) == set(numbers)


def test_quantised_caches_take_turns_with_others() -> None:
    """Their forwards cannot be shared."""
    model = SpeculativeModel(models.build("llama", head_dim=32), models.build_drafter())
    options = CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=8)
    quantised = DecodingConfig(12, cache_options=options)
    reader = Reader(Engine(model, batch_size=4))
    configs = [quantised, DecodingConfig(12), quantised, DecodingConfig(12)]
    numbers = [reader.engine.add(p, c) for p, c in zip(PROMPTS, configs, strict=False)]
    reader.finish()
    for number, prompt, config in zip(numbers, PROMPTS, configs, strict=False):
        assert reader.texts[number] == [one.token for one in decode(model, prompt, config)]


@pytest.mark.parametrize(
    "options", [{"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}, {"max_kv_size": 16}]
)
def test_caches_that_an_earlier_turn_quantised_or_bounded_take_turns_too(
    options: dict[str, int],
) -> None:
    model = SpeculativeModel(models.build("qwen3", head_dim=32), models.build_drafter())
    drafts = "max_kv_size" not in options
    cache = model.target.make_cache(options.get("max_kv_size"))
    before = DecodingConfig(12, draft=drafts, cache_options=CacheOptions(**options))
    first = [one.token for one in decode(model, PROMPTS[1], before, cache=cache)]
    prompt, config = [*PROMPTS[1], *first, 3], DecodingConfig(12, draft=drafts)
    wanted = [one.token for one in decode(model, prompt, config, cache=cache.copy())]
    reader = Reader(Engine(model, batch_size=4))
    other = DecodingConfig(40)
    numbers = [reader.engine.add(one, other) for one in (PROMPTS[0], PROMPTS[2])]
    numbers.insert(1, reader.engine.add(prompt, config, cache=cache))
    reader.finish()
    alone_with = [[t.token for t in decode(model, p, other)] for p in (PROMPTS[0], PROMPTS[2])]
    assert [reader.texts[one] for one in numbers] == [alone_with[0], wanted, alone_with[1]]


def test_a_text_that_fails_leaves_the_others_alone() -> None:
    model = model_of("llama")
    held = model.make_cache()
    reader = Reader(Engine(model, prompts_first=True))
    robbed = reader.engine.add(PROMPTS[0], CONFIGS[0], cache=held)
    while robbed not in reader.texts:
        reader.step()
    next(decode(model, PROMPTS[1], CONFIGS[1], cache=held))
    other = reader.engine.add(PROMPTS[2], CONFIGS[2])
    reader.finish()
    assert isinstance(reader.failed[robbed], RedrafterError)
    assert reader.texts[other] == alone("llama", PROMPTS[2], CONFIGS[2])


@pytest.mark.parametrize("steps", range(6))
def test_a_text_whose_cache_serves_another_fails_wherever_it_has_got_to(steps: int) -> None:
    """Waiting, reading its prompt, about to join others, or under way; the newer one goes on."""
    kept: list[Any] = []
    model = model_of("llama")
    reader = Reader(Engine(model, batch_size=4, keep=kept.append))
    other = reader.engine.add(PROMPTS[0], CONFIGS[0])
    for _ in range(3):
        reader.step()
    held = model.make_cache()
    configs = [replace(CONFIGS[4], prefill_step_size=size) for size in (16, 7)]
    older = reader.engine.add(PROMPTS[1], configs[0], cache=held)
    for _ in range(steps):
        reader.step()
    newer = reader.engine.add(PROMPTS[3], configs[1], cache=held)
    reader.finish()
    assert reader.texts[newer] == alone("llama", PROMPTS[3], CONFIGS[4])
    assert reader.texts[other] == alone("llama", PROMPTS[0], CONFIGS[0])
    expected = alone("llama", PROMPTS[1], CONFIGS[4])
    text = reader.texts.get(older, [])
    assert text == expected[: len(text)]
    if older in reader.failed:
        assert "its cache has served another text since" in str(reader.failed[older])
    else:  # in a batch it has no part in this cache any more
        assert text == expected
    texts = {
        tuple([*PROMPTS[place], *reader.texts[number]][:-1]): number
        for place, number in ((0, other), (3, newer))
    }
    assert {tuple(one.tokens) for one in kept} >= set(texts)


def test_a_text_that_is_not_begun_changes_nothing_of_the_one_under_way() -> None:
    model = SpeculativeModel(models.build("llama", head_dim=32))
    options = CacheOptions(kv_bits=2, kv_group_size=32, quantized_kv_start=12)
    config = DecodingConfig(16, cache_options=options)
    expected = [one.token for one in decode(model, PROMPTS[4], config)]
    assert expected != [one.token for one in decode(model, PROMPTS[4], DecodingConfig(16))]
    held = model.make_cache()
    text = decode(model, PROMPTS[4], config, cache=held)
    made = [next(text).token]
    decode(model, PROMPTS[4], DecodingConfig(16), cache=held)
    assert made + [one.token for one in text] == expected


def test_what_cannot_be_decoded_is_refused_when_it_is_added() -> None:
    engine = Engine(model_of("llama"))
    bad: list[tuple[list[int], DecodingConfig, str]] = [
        ([], CONFIGS[0], "empty"),
        ([models.VOCAB], CONFIGS[0], "outside the vocabulary"),
        ([1], DecodingConfig(beam=BeamShape(width=100)), "beam width"),
        ([1], DecodingConfig(sampling=SamplingConfig(top_k=models.VOCAB)), "top_k"),
    ]
    for prompt, config, words in bad:
        with pytest.raises(RedrafterError, match=words):
            engine.add(prompt, config)
    assert not engine.busy
    with pytest.raises(RedrafterError, match="batch_size is 0"):
        Engine(model_of("llama"), batch_size=0)


def test_a_single_text_overlaps_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One evaluation a step, launched before the one before it is read."""
    from decoding_cases import Evaluations

    model = model_of("llama", drafter=False)
    engine = Engine(model)
    engine.add(PROMPTS[0], DecodingConfig(10))
    counted: Any = Evaluations(monkeypatch)
    tokens = 0
    while engine.busy:
        for event in engine.step():
            assert not isinstance(event, SequenceFailed)
            tokens += isinstance(event, NewToken)
        if 1 < tokens < 9:
            assert len(counted.launched) == tokens + 1
    assert tokens == 10
