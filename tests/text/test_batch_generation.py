"""Texts for several prompts: those of each alone, whole characters, stop strings, figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter import batch_generate, stream_batch_generate
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.step import DecodedToken
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.text import batch_generate as batch_generation
from mlx_redrafter.text.generate import generate, stream_generate

PROMPTS = ["Hm?", "A longer one, with more to say.", "x", "Ż and é"]


@pytest.fixture(scope="module")
def model(tokenizer: TokenizerWrapper) -> SpeculativeModel:
    size = len(tokenizer.get_vocab())
    target = models.build("llama", vocab_size=size)
    return SpeculativeModel(target, models.build_drafter(vocab_size=size))


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_are_those_of_each_alone(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, temperature: float, draft: bool
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "seed": 3, "draft": draft}
    limits = [20, 9, 1, 14]
    made = batch_generate(
        model, tokenizer, PROMPTS, max_tokens=limits, batch_size=3, beam_width=2, **options
    )
    alone = [
        list(
            stream_generate(model, tokenizer, prompt, **options | {"max_tokens": n, "seed": 3 + i})
        )
        for i, (prompt, n) in enumerate(zip(PROMPTS, limits, strict=True))
    ]
    assert made.seeds == [3, 4, 5, 6]
    assert made.texts == ["".join(one.text for one in text) for text in alone]
    assert made.finish_reasons == [text[-1].finish_reason for text in alone]
    ends = set(tokenizer.eos_token_ids)
    written = [[one.token for one in text if one.token not in ends] for text in alone]
    assert made.token_ids == written
    stats = made.stats
    assert stats.generation_tokens == sum(len(text) for text in alone)
    assert stats.prompt_tokens == sum(text[0].prompt_tokens for text in alone)
    assert 0 < stats.prompt_time < stats.wall_time
    taken = stats.prompt_tokens / stats.prompt_tps + stats.generation_tokens / stats.generation_tps
    assert taken == pytest.approx(stats.wall_time)
    drafted = [one.drafted for one in stats.acceptance]
    assert (sum(drafted) > 0) == draft


def test_a_stop_string_ends_its_own_text_only(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    free = batch_generate(model, tokenizer, PROMPTS, max_tokens=24)
    stop = free.texts[0][4:6]
    assert stop
    made = batch_generate(model, tokenizer, PROMPTS, max_tokens=24, stop=stop)
    expected = [generate(model, tokenizer, one, max_tokens=24, stop=stop) for one in PROMPTS]
    assert made.texts == expected
    assert made.texts[0] != free.texts[0]
    assert made.finish_reasons[0] == "stop"


def test_responses_come_as_they_are_made(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    order = [index for index, _ in stream_batch_generate(model, tokenizer, PROMPTS, max_tokens=6)]
    assert order[:4] == [0, 1, 2, 3]
    assert sorted(order) != order
    abandoned = stream_batch_generate(model, tokenizer, PROMPTS, max_tokens=6)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]


def test_the_models_own_planner_plans_for_the_batch(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = CostModel((1, 8, 64), (64,), ((1.0, 1.1, 1.4),), {1: 0.01, 8: 0.02}, (1.0,))
    own = Planner(costs)
    model.planner = own
    asked: list[int] = []
    for_batch = own.for_batch

    def snapshot(texts: int) -> Planner:
        asked.append(texts)
        return for_batch(texts)

    monkeypatch.setattr(own, "for_batch", snapshot)
    planned = batch_generate(model, tokenizer, PROMPTS, max_tokens=8, batch_size=3)
    assert max(asked) == 3
    assert asked[-1] < 3  # as many as are left

    def unwanted() -> Planner:
        raise AssertionError("nothing is to be measured")

    model.plan_with(unwanted)
    for options in ({"draft": False}, {"beam_width": 2}):
        made = batch_generate(model, tokenizer, PROMPTS, max_tokens=8, **options)
        assert made.texts == planned.texts
    with pytest.raises(RedrafterError, match="batch_size is 0"):
        stream_batch_generate(model, tokenizer, PROMPTS, batch_size=0)
    model.planner = None


def test_each_prompts_time_is_its_own(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt tokens per second are those of the prefill."""

    class Timed(BatchDecoder):
        def __iter__(self) -> Iterator[tuple[int, DecodedToken]]:
            for index, token in super().__iter__():
                assert self.prompt_seconds[index] > 0
                self.prompt_seconds[index] = 100.0 * (1 + index)
                yield index, token

    monkeypatch.setattr(batch_generation, "BatchDecoder", Timed)
    for index, response in stream_batch_generate(model, tokenizer, PROMPTS, max_tokens=2):
        expected = response.prompt_tokens / (100.0 * (1 + index))
        assert response.prompt_tps == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", [np.array, mx.array])
def test_numbers_for_each_prompt_may_be_an_array(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, kind: Any
) -> None:
    options: dict[str, Any] = {"temperature": 1.0}
    made = batch_generate(
        model, tokenizer, ["a", "b"], max_tokens=kind([2, 5]), seed=kind([7, 3]), **options
    )
    expected = batch_generate(
        model, tokenizer, ["a", "b"], max_tokens=[2, 5], seed=[7, 3], **options
    )
    assert made.token_ids == expected.token_ids
    assert made.seeds == [7, 3]
    decoder = BatchDecoder(model, [[1], [2]], max_tokens=kind([2, 3]))
    assert len(list(decoder)) == 5


def test_bad_arguments(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    with pytest.raises(RedrafterError, match="no prompts"):
        batch_generate(model, tokenizer, [])
    with pytest.raises(RedrafterError, match=r"prompts\[1\] is empty"):
        batch_generate(model, tokenizer, ["a", []])
    with pytest.raises(RedrafterError, match="give a list of prompts"):
        batch_generate(model, tokenizer, "one text")
    with pytest.raises(RedrafterError, match="temperature is -1"):
        stream_batch_generate(model, tokenizer, ["a"], temperature=-1.0)
    for options, words in (
        ({"batch_size": "2"}, "batch_size is '2', but has to be a whole number"),
        ({"per_prompt": 5}, "per_prompt has to be a list of options"),
        ({"per_prompt": [5]}, r"per_prompt\[0\] has to be a mapping"),
        ({"per_prompt": mx.array(1.5)}, "per_prompt has to be a list of options"),
        ({"max_tokens": b"x"}, "max_tokens is b'x'"),
        ({"seed": b"x"}, "seed is b'x'"),
        ({"tools": 5}, "tools has to be a list"),
        ({"chat_template_args": 5}, "chat_template_args has to be a mapping"),
    ):
        with pytest.raises(RedrafterError, match=words):
            stream_batch_generate(model, tokenizer, ["a"], **options)
    message: Any = {"role": "user", "content": "a"}
    with pytest.raises(RedrafterError, match="prompts is one mapping: give a list"):
        batch_generate(model, tokenizer, message)
    with pytest.raises(RedrafterError, match="prompts has to be a list"):
        batch_generate(model, tokenizer, 5)


def test_prompts_may_be_an_array_or_a_generator(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    rows = [[3, 4, 5], [6, 7, 8]]
    expected = batch_generate(model, tokenizer, rows, max_tokens=4).texts
    for prompts in (mx.array(rows), np.array(rows), (row for row in rows)):
        assert batch_generate(model, tokenizer, prompts, max_tokens=4).texts == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_bits": 8}, "leave kv_bits and max_kv_size out"),
        ({"max_kv_size": 64}, "leave kv_bits and max_kv_size out"),
        ({"kv_bits": 7}, "kv_bits is 7"),
        ({"cache": PromptCache([])}, "one by one"),
    ],
)
def test_caches_that_a_batch_has_not(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        stream_batch_generate(model, tokenizer, ["a"], **options)


def test_mlx_lms_model_and_what_is_no_tokenizer_are_refused(tokenizer: TokenizerWrapper) -> None:
    own: Any = models.shared("llama")
    with pytest.raises(RedrafterError, match=r"SpeculativeModel\(model\) around .* is a Model"):
        generate(own, tokenizer, "text")
    with pytest.raises(RedrafterError, match=r"SpeculativeModel\(model\) around .* is a Model"):
        batch_generate(own, tokenizer, ["text"])
    wrong: Any
    for wrong in (None, "pocket", SpeculativeModel(own)):
        with pytest.raises(RedrafterError, match=r"tokenizer has to be .* is a "):
            generate(SpeculativeModel(own), wrong, "text")
