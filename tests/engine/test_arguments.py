"""What decoding token ids takes and refuses, one level below text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from planning_machines import CPU, costs_of

import models
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter

PROMPT = models.prompt_of(5)
CONFIG = DecodingConfig(max_tokens=4)


def model() -> SpeculativeModel:
    return SpeculativeModel(models.shared("llama"), models.build_drafter())


@pytest.mark.parametrize(
    "kind", [tuple, np.array, mx.array, lambda ids: [np.int32(i) for i in ids]]
)
def test_a_prompt_may_be_any_sequence_or_array_of_ids(kind: Any) -> None:
    expected = [one.token for one in decode(model(), PROMPT, CONFIG)]
    prompt = kind(PROMPT)
    assert [one.token for one in decode(model(), prompt, CONFIG)] == expected
    batch = BatchDecoder(model(), [prompt, prompt], CONFIG)
    assert sorted(one.token for _, one in batch) == sorted(expected * 2)
    engine = Engine(model())
    number = engine.add(prompt, CONFIG)
    held = engine.sequence(number).prompt
    assert held == PROMPT
    assert {type(token) for token in held} == {int}


@pytest.mark.parametrize(
    "prompt", ["text", b"text", None, 5, [1.0, 2.0], [True], [[1, 2]], iter([1]), mx.array(1)]
)
def test_what_is_no_list_of_ids_is_refused(prompt: Any) -> None:
    for call in (
        lambda: decode(model(), prompt),
        lambda: BatchDecoder(model(), [prompt]),
        lambda: Engine(model()).add(prompt),
    ):
        with pytest.raises(RedrafterError, match="has to be a list of token ids here"):
            call()


def test_another_model_or_config_is_refused() -> None:
    own: Any = models.shared("llama")
    options: Any = {"max_tokens": 3}
    for call in (
        lambda: decode(own, PROMPT),
        lambda: BatchDecoder(own, [PROMPT]),
        lambda: Engine(own),
    ):
        with pytest.raises(RedrafterError, match=r"SpeculativeModel\(model\) around .* is a Model"):
            call()
    for call in (
        lambda: decode(model(), PROMPT, options),
        lambda: BatchDecoder(model(), [PROMPT], options),
        lambda: Engine(model()).add(PROMPT, options),
    ):
        with pytest.raises(RedrafterError, match="config has to be a DecodingConfig"):
            call()


@pytest.mark.parametrize("planner", [5, Planner, "planner"])
def test_a_planner_that_does_not_plan_is_refused(planner: Any) -> None:
    planned = model()
    planned.planner = planner
    for call in (
        lambda: decode(model(), PROMPT, planner=planner),
        lambda: decode(planned, PROMPT, planner=planned.planner),
        lambda: BatchDecoder(model(), [PROMPT], planner=planner),
        lambda: Engine(model(), planner=planner),
    ):
        with pytest.raises(RedrafterError, match="planner has to be a Planner"):
            call()


def test_what_is_told_and_counted_has_to_be_of_its_kind() -> None:
    wrong: Any = 5
    array: Any = mx.array(1.5)
    letters: Any = b"x"
    for call, words in (
        (lambda: decode(model(), PROMPT, progress=wrong), "progress has to be a function"),
        (lambda: Engine(model(), keep=wrong), "keep has to be a function of a cache"),
        (lambda: decode(model(), PROMPT, stats=wrong), "stats has to be an AcceptanceStats"),
        (lambda: Engine(model()).add(PROMPT, stats=wrong), "stats has to be an AcceptanceStats"),
        (lambda: SpeculativeModel(model().target, beside=wrong), "beside has to be a list"),
        (lambda: SpeculativeModel(model().target, config=wrong), "config has to be a mapping"),
        (lambda: SpeculativeModel(model().target, config=array), "config has to be a mapping"),
        (lambda: SpeculativeModel(model().target, beside=array), "beside has to be a list"),
        (lambda: SpeculativeModel(model().target, name=wrong), "name has to be text"),
        (lambda: SpeculativeModel(model().target, ranks=wrong), "ranks has to be a Ranks, and is"),
        (lambda: SpeculativeModel(model().target, recorded=wrong), "has to be a RecordedDrafts"),
        (lambda: AcceptanceStats().merge(wrong), "other has to be an AcceptanceStats"),
        (lambda: Drafter(wrong), "config has to be a DrafterConfig, and is 5"),
        (lambda: Engine(model()).sequence(wrong), "This engine has no text 5, or has it no longer"),
        (lambda: Engine(model(), prompts_first=wrong), "prompts_first has to be True or False"),
        (lambda: BatchDecoder(model(), [PROMPT], array), "config has to be a DecodingConfig"),
        (lambda: BatchDecoder(model(), [PROMPT], max_tokens=letters), "max_tokens has to be a"),
        (lambda: model().target.make_cache(wrong), "max_kv_size is 5, but has to be"),
        (lambda: load_drafter(wrong), "A path has to be text or a Path, and is 5"),
        (lambda: save_drafter("nowhere", wrong), "drafter has to be a Drafter, and is 5"),
    ):
        with pytest.raises(RedrafterError, match=words):
            call()
    assert not Path("nowhere").exists()


def test_numbers_of_numpy_become_pythons_own() -> None:
    """They are told to other ranks as JSON."""
    config = DecodingConfig(
        np.int64(5),
        SamplingConfig(xtc_special_tokens=[np.int64(3)]),  # type: ignore[arg-type]
        eos_token_ids=[np.int32(3)],  # type: ignore[arg-type]
        prefill_step_size=np.int64(7),
    )
    own = [config.max_tokens, config.prefill_step_size, *config.eos_token_ids]
    assert {type(one) for one in (*own, *config.sampling.xtc_special_tokens)} == {int}


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": 10**400},
        {"repetition_penalty": 10**400},
        {"presence_penalty": -(10**400)},
        {"repetition_context_size": 2**31},
        {"top_k": 10**400},
    ],
)
def test_numbers_beyond_those_of_the_machine_are_refused(option: Any) -> None:
    ((name, _),) = option.items()
    with pytest.raises(RedrafterError, match=f"{name} is .*, but has to be"):
        SamplingConfig(**option)


def test_a_source_says_how_deep_its_trees_are() -> None:
    for depth in ("2", None, -1, 1.5):
        source: Any = models.ScriptedSource([1, 2, 3], full=True)
        source.max_depth = depth
        with pytest.raises(RedrafterError, match="max_depth has to be a whole number"):
            SpeculativeModel(models.shared("llama"), source)


def test_what_is_refused_is_shown_on_one_line() -> None:
    large: Any = np.arange(40_000.0).reshape(200, 200)
    for call in (
        lambda: SamplingConfig(temperature=large),
        lambda: DecodingConfig(max_tokens=large),
        lambda: DecodingConfig(prefill_step_size=large),
        lambda: DecodingConfig(beam=large),
        lambda: BeamShape(large, 2),
        lambda: CacheOptions(kv_bits=large),
        lambda: Engine(model(), batch_size=large),
        lambda: model().make_cache().rewind(large),
        lambda: SpeculativeModel(model().target, name=large),
    ):
        with pytest.raises(RedrafterError, match="array") as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "tokens", [[1, 2, 10**7], [-1, 2, 3], [1, 2], [1.0, 2.0, 3.0], [1, 3, 2], [1, 2, 2]]
)
def test_a_small_head_proposes_tokens_that_there_are(tokens: list[Any]) -> None:
    """Of any others an embedding would be read from beyond its end."""
    drafter = models.build_drafter(draft_vocab_size=3)
    drafting = SpeculativeModel(models.shared("llama"), drafter)
    drafter.draft_tokens = mx.array(tokens)
    for call in (
        lambda: SpeculativeModel(models.shared("llama"), drafter),
        lambda: decode(drafting, PROMPT),
    ):
        with pytest.raises(RedrafterError, match="draft_tokens have to be 3 token ids from 0 to"):
            call()


def test_a_planner_is_of_costs_and_a_head() -> None:
    wrong: Any = 5
    mlx_lms: Any = models.shared("llama")
    costs: Any = {"plain": 1.0}
    headless = SpeculativeModel(models.shared("llama"))
    for call, words in (
        (lambda: Planner(costs), r"costs has to be a CostModel \(Planner.for_model"),
        (lambda: Planner(costs_of(CPU), recorded=wrong), "recorded has to be a RecordedDrafts"),
        (lambda: Planner.for_model(wrong), r"SpeculativeModel\(model\) around .* is a int"),
        (lambda: Planner.for_model(mlx_lms), r"SpeculativeModel\(model\) around .* is a Model"),
        (lambda: Planner.for_model(headless), "this model has none: load it with its drafter"),
        (lambda: Planner.for_model(model(), recalibrate=wrong), "recalibrate has to be True or"),
        (lambda: Planner.for_model(model(), progress=wrong), "progress has to be a function of"),
    ):
        with pytest.raises(RedrafterError, match=words):
            call()


@pytest.mark.parametrize("drafter", ["models/pocket/drafter", len])
def test_a_drafter_that_does_not_propose_is_refused(drafter: Any) -> None:
    with pytest.raises(RedrafterError, match="The drafter has to be a Drafter"):
        SpeculativeModel(models.shared("llama"), drafter)
    with pytest.raises(RedrafterError, match="The drafter has to be a Drafter"):
        SpeculativeModel(models.shared("llama"), beside=[drafter])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": {"temperature": 1.0}}, "sampling has to be a SamplingConfig"),
        ({"beam": 4}, "beam has to be a BeamShape"),
        ({"cache_options": {}}, "cache_options has to be a CacheOptions"),
        ({"draft": "no"}, "draft has to be True or False"),
        ({"copy": 1}, "copy has to be True or False"),
        ({"logits_processors": 5}, "logits_processors has to be a list of functions"),
        ({"logits_processors": [5]}, "logits_processors has to be a list of functions"),
        ({"sampler": 5}, "sampler has to be a function"),
        ({"eos_token_ids": 0}, "eos_token_ids has to be a list of token ids"),
        ({"eos_token_ids": b"ab"}, "eos_token_ids has to be a list of token ids"),
        ({"eos_token_ids": {2: "</s>"}}, "eos_token_ids has to be a list of token ids"),
        ({"eos_token_ids": "</s>"}, "eos_token_ids has to be a list of token ids"),
    ],
)
def test_a_config_of_other_kinds_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        DecodingConfig(**options)


def test_processors_may_be_a_list_or_one() -> None:
    def first(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits + 1e4 * (mx.arange(logits.shape[-1]) == tokens[-1])

    given: list[Any] = [first, [first], iter([first])]
    for processors in given:
        config = DecodingConfig(3, logits_processors=processors)
        assert config.logits_processors == (first,)
        assert [one.token for one in decode(model(), PROMPT, config)] == PROMPT[-1:] * 3


def test_ends_may_be_a_list() -> None:
    given: Any = [3, 2]
    assert DecodingConfig(eos_token_ids=given).eos_token_ids == {2, 3}


@pytest.mark.parametrize("length", [2.5, "2", None, True, -1])
def test_a_cache_goes_back_to_whole_lengths_only(length: Any) -> None:
    shared = model()
    cache = shared.make_cache()
    list(decode(shared, PROMPT, CONFIG, cache=cache))
    held = list(cache.tokens)
    with pytest.raises(RedrafterError, match="has to be a whole number of tokens"):
        cache.rewind(length)
    assert cache.tokens == held
    assert [layer.offset for layer in cache.layers] == [len(held)] * len(cache.layers)
    cache.rewind(np.int64(2))
    assert cache.tokens == held[:2]
