"""Seeds, and options as mlx-lm's callers write them."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import stream_generate as mlx_lm_stream
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.noise import coins
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.batch_generate import batch_generate
from mlx_redrafter.text.generate import generate, stream_generate

PROMPT = models.prompt_of(7)


@pytest.fixture(scope="module")
def model(tokenizer: TokenizerWrapper) -> SpeculativeModel:
    size = len(tokenizer.get_vocab())
    target = models.build("llama", vocab_size=size)
    return SpeculativeModel(target, models.build_drafter(vocab_size=size, seed=1))


def ids(model: SpeculativeModel, tokenizer: Any, **options: Any) -> list[int]:
    options = {"max_tokens": 12, **options}
    return [one.token for one in stream_generate(model, tokenizer, PROMPT, **options)]


def test_a_text_without_a_seed_draws_its_own_and_says_which(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    texts = {}
    for _ in range(6):
        made = list(stream_generate(model, tokenizer, PROMPT, max_tokens=12, temperature=1.0))
        (seed,) = {one.seed for one in made}
        texts[seed] = [one.token for one in made]
    assert len(texts) == 6
    assert len({tuple(text) for text in texts.values()}) == 6
    for seed, text in texts.items():
        assert ids(model, tokenizer, temperature=1.0, seed=seed) == text


def test_prompts_of_a_batch_do_not_share_noise(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0}
    free = batch_generate(model, tokenizer, [PROMPT] * 6, **options)
    assert len(set(free.texts)) == len(set(free.seeds)) == 6
    counted = batch_generate(model, tokenizer, [PROMPT] * 3, seed=5, **options)
    assert counted.seeds == [5, 6, 7]
    listed = batch_generate(model, tokenizer, [PROMPT] * 3, seed=[7, 5, 5], **options)
    assert listed.texts == [counted.texts[2], counted.texts[0], counted.texts[0]]
    again = batch_generate(model, tokenizer, [PROMPT] * 6, seed=free.seeds, **options)
    assert again.texts == free.texts
    with pytest.raises(RedrafterError, match="seed has 2 entries for 3 prompts"):
        batch_generate(model, tokenizer, [PROMPT] * 3, seed=[1, 2], **options)


def test_prompts_of_a_batch_have_options_of_their_own(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    own: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 4, "top_k": 9},
        {"max_tokens": 5, "draft": False},
        {"repetition_penalty": 1.4, "beam_width": 2},
        {"logit_bias": {3: 50.0}, "logprobs": 2},
    ]
    made = batch_generate(model, tokenizer, [PROMPT] * 4, max_tokens=12, per_prompt=own)
    assert made.token_ids == [ids(model, tokenizer, **one) for one in own]
    assert made.logprobs is not None
    assert all(value is not None for value in made.logprobs[3])


def test_large_windows_cost_nothing(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    def timed(size: int) -> tuple[float, list[int]]:
        mx.reset_peak_memory()
        start = time.perf_counter()
        text = ids(model, tokenizer, repetition_penalty=1.3, repetition_context_size=size)
        return time.perf_counter() - start, text

    timed(100)
    (_, text), before = timed(100), mx.get_peak_memory()
    _, same = timed(10**7)
    assert same == text
    assert mx.get_peak_memory() < 2 * before


PROCESSORS: list[dict[str, Any]] = [
    {"logit_bias": {5: 3.0, 9: -4.0}},
    {"repetition_penalty": 1.5, "repetition_context_size": 6},
    {"frequency_penalty": 0.7},
]


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("options", PROCESSORS)
def test_processors_of_mlx_lm(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, options: dict[str, Any], draft: bool
) -> None:
    """Applied to the nodes of a tree, each with its own prefix, they do what the options do."""
    made = ids(
        model,
        tokenizer,
        logits_processors=make_logits_processors(**options),
        draft=draft,
        prompt_cache=model.make_cache(),
    )
    assert made == ids(model, tokenizer, draft=draft, **options)
    # mlx-lm's own see the prompt's last token and what follows only.
    kept = {**options, "repetition_context_size": 1} if "repetition_penalty" in options else options
    theirs = mlx_lm_stream(
        model.target.model,
        tokenizer,
        PROMPT[:1],
        max_tokens=8,
        logits_processors=make_logits_processors(**kept),
    )
    ours = stream_generate(model, tokenizer, PROMPT[:1], max_tokens=8, draft=draft, **kept)
    assert [one.token for one in ours] == [one.token for one in theirs]


def test_a_processor_sees_each_nodes_own_text(tokenizer: TokenizerWrapper) -> None:
    target = models.shared("llama")
    plain = [one.token for one in decode(SpeculativeModel(target), PROMPT, DecodingConfig(14))]
    text = PROMPT + plain
    source = models.ScriptedSource(text, full=True)
    seen: list[list[int]] = []

    def note(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.tolist())  # type: ignore[arg-type]
        return logits

    config = DecodingConfig(12, logits_processors=(note,))
    made = [one.token for one in decode(SpeculativeModel(target, source), PROMPT, config)]
    assert made == plain[:12]
    assert all(tokens[: len(PROMPT)] == PROMPT for tokens in seen)
    assert {len(PROMPT) + n for n in range(12)} <= {len(t) for t in seen if t == text[: len(t)]}


def test_a_sampler_decodes_plainly_and_says_so(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    greedy = ids(model, tokenizer)
    with pytest.warns(UserWarning, match="decoded plainly"):
        responses = list(
            stream_generate(model, tokenizer, PROMPT, max_tokens=12, sampler=make_sampler(0.0))
        )
    assert [one.token for one in responses] == greedy
    assert responses[-1].stats.drafted == 0
    mx.random.seed(3)
    drawn = ids(model, tokenizer, sampler=make_sampler(1.0), draft=False)
    mx.random.seed(3)
    theirs = mlx_lm_stream(
        model.target.model, tokenizer, PROMPT, max_tokens=12, sampler=make_sampler(1.0)
    )
    ends = set(tokenizer.eos_token_ids)
    assert drawn == [one.token for one in theirs] or drawn[-1] in ends


@pytest.mark.parametrize("draft", [True, False])
def test_xtc_excludes_the_likeliest(model: SpeculativeModel, draft: bool) -> None:
    options: dict[str, Any] = {"xtc_threshold": 0.0, "temperature": 1.0, "seed": 2}

    def text(**more: Any) -> list[int]:
        config = DecodingConfig(
            16, SamplingConfig(**options, **more), draft=draft, beam=BeamShape(2, 3)
        )
        return [one.token for one in decode(model, PROMPT, config)]

    always = text(xtc_probability=1.0)  # all but the least likely token of all are excluded
    logits, _ = model.target.teach(mx.array([PROMPT + always[:-1]]))
    least = mx.argmin(logits[0, len(PROMPT) - 1 :], axis=-1).tolist()
    assert always == least
    assert text(xtc_probability=0.0) == text()
    some = text(xtc_probability=0.5)
    assert some == text(xtc_probability=0.5)
    assert some not in (always, text())


def test_coins_belong_to_positions() -> None:
    drawn = coins(7, mx.arange(4000))
    assert abs(float(drawn.mean()) - 0.5) < 0.03
    np.testing.assert_array_equal(np.array(coins(7, mx.array([70]))), np.array(drawn[70:71]))


def test_logprobs_of_responses(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    for draft in (True, False):
        made = list(
            stream_generate(model, tokenizer, PROMPT, max_tokens=9, logprobs=3, draft=draft)
        )
        text = PROMPT + [one.token for one in made]
        logits, _ = model.target.teach(mx.array([text[:-1]]))
        rows = logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True)
        for place, one in enumerate(made, start=len(PROMPT) - 1):
            assert one.logprob == pytest.approx(float(rows[place, one.token]), abs=1e-4)
            assert one.top_logprobs[0][0] == one.token
            values = [value for _, value in one.top_logprobs]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.8, "top_p": 0.7, "seed": 3}, {"repetition_penalty": 1.7}],
    ids=["greedy", "sampled", "penalised"],
)
def test_logprobs_of_all_tokens_as_mlx_lm_has_them(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, options: dict[str, Any]
) -> None:
    settings = {"max_tokens": 20, "logprobs": True, **options}
    plain = list(stream_generate(model, tokenizer, PROMPT, draft=False, **settings))
    size = model.target.vocab_size
    source = models.ScriptedSource([*PROMPT, *(one.token for one in plain)], vocab_size=size)
    drafting = SpeculativeModel(model.target, source)
    drafted = list(stream_generate(drafting, tokenizer, PROMPT, **settings))
    assert any(one.from_draft for one in drafted)
    for one, other in zip(drafted, plain, strict=True):
        assert one.logprobs.shape == (model.target.vocab_size,)
        assert one.logprobs.nbytes == 4 * model.target.vocab_size
        assert mx.exp(one.logprobs).sum().item() == pytest.approx(1, abs=1e-4)
        assert one.logprob == one.logprobs[one.token].item()
        assert mx.allclose(one.logprobs, other.logprobs, atol=1e-4)
    if not options:
        made = mlx_lm_stream(model.target.model, tokenizer, PROMPT, max_tokens=20)
        for one, theirs in zip(drafted, made, strict=True):
            assert mx.allclose(one.logprobs, theirs.logprobs, atol=1e-4)


def test_logprobs_of_all_tokens_can_be_read_in_another_thread(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    made = list(stream_generate(model, tokenizer, PROMPT, max_tokens=6, logprobs=True))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: [one.logprobs.tolist()[one.token] for one in made]).result()
    assert found == [one.logprob for one in made]


@pytest.mark.parametrize("logprobs", [None, False, 0, 2])
def test_logprobs_of_all_tokens_have_to_be_asked_for(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, logprobs: int | None
) -> None:
    one = next(stream_generate(model, tokenizer, PROMPT, max_tokens=2, logprobs=logprobs))
    assert (one.logprob is None) == (logprobs is None or logprobs is False)
    assert not hasattr(one, "logprobs")
    with pytest.raises(RedrafterError, match="pass logprobs=True"):
        _ = one.logprobs


def test_options_of_mlx_lm_that_ask_for_nothing_are_taken(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    nothing: dict[str, Any] = {"draft_model": None, "num_draft_tokens": None, "temp": None}
    assert ids(model, tokenizer, max_tokens=4, **nothing) == ids(model, tokenizer, max_tokens=4)
    made = batch_generate(
        model, tokenizer, [PROMPT], max_tokens=4, prompt_caches=None, verbose=False
    )
    assert made.logprobs is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temp": 0.5}, "no option temp: use temperature"),
        ({"num_draft_tokens": 3}, "use beam_length"),
        ({"draft_model": "head"}, "give the drafter to load"),
        ({"nonsense": None}, "no option nonsense"),
        ({"nonsense": 1}, "there are .*temperature"),
        ({"temperature": 1e-38}, "temperature is 1e-38, but has to be 0, or a finite number"),
        ({"temperature": [1.0]}, r"temperature is \[1.0\]"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"top_k": 2.5}, "top_k is 2.5, but has to be a whole number"),
        ({"max_tokens": [3]}, r"max_tokens is \[3\]"),
        ({"max_tokens": "9"}, "max_tokens is '9'"),
        ({"prefill_step_size": 1.5}, "prefill_step_size is 1.5"),
        ({"logit_bias": {10**6: 1.0}}, "ids of the vocabulary only"),
        ({"logit_bias": {3: math.nan}}, "finite numbers"),
        ({"logit_bias": 7}, "logit_bias has to map"),
        ({"logit_bias": False}, "logit_bias has to map"),
        ({"logit_bias": {5.7: 1.0}}, "logit_bias has to map"),
        ({"logit_bias": {True: 1.0}}, "logit_bias has to map"),
        ({"logit_bias": {5: True}}, "logit_bias has to map"),
        ({"logit_bias": {5: "3"}}, "logit_bias has to map"),
        ({"max_kv_size": "64"}, "max_kv_size is '64', but has to be a whole number from 8"),
        ({"max_kv_size": 64.5}, "max_kv_size is 64.5"),
        ({"kv_bits": 8.0}, "kv_bits is 8.0"),
        ({"kv_bits": 8, "kv_group_size": 64.0}, "kv_group_size is 64.0"),
        ({"quantized_kv_start": "0"}, "quantized_kv_start is '0'"),
        ({"quantized_kv_start": None, "kv_bits": True}, "kv_bits is True"),
        ({"beam_width": 2.0}, "beam width is 2.0, but has to be a whole number"),
        ({"prompt_progress_callback": 5}, "prompt_progress_callback has to be a function"),
        ({"sampler": 3}, "sampler has to be a function"),
        ({"sampler": make_sampler(0.0), "temperature": 1.0}, "give one of the two"),
        (
            {"sampler": make_sampler(0.0), "sampling": SamplingConfig(1.0, top_k=5)},
            "takes the place of temperature",
        ),
        ({"sampler": make_sampler(0.0), "xtc_probability": 0.5}, "the place of xtc_probability"),
        ({"sampler": make_sampler(0.0), "temperature": 0.0}, "the place of temperature"),
        ({"sampler": make_sampler(0.0), "seed": 3}, "the place of seed"),
        ({"logits_processors": [3]}, "list of functions"),
        ({"stop": ["a", ""]}, "stop has to be"),
        ({"stop": 3}, "stop has to be"),
        ({"stop": {"a": 1}}, "stop has to be"),
        ({"stop": mx.array(1.5)}, "stop has to be"),
        ({"logits_processors": mx.array(1.5)}, "list of functions"),
        ({"xtc_special_tokens": b"ab"}, "list of token ids"),
        ({"tools": 5}, "tools has to be a list"),
        ({"tools": mx.array([1, 2])}, "tools has to be a list"),
        ({"chat_template_args": 5}, "chat_template_args has to be a mapping"),
        ({"chat_template_args": mx.array([1, 2])}, "chat_template_args has to be a mapping"),
        ({"chat_template_args": {"add_generation_prompt": False}}, "which is set for you"),
        ({"chat_template_args": {"continue_final_message": 1}}, "which is set for you"),
        ({"chat_template_args": {"chat_template": "x"}}, "which is set for you"),
        ({"planner": 5}, "planner has to be a Planner"),
        ({"logits_processors": 5}, "list of functions"),
        ({"xtc_special_tokens": 5}, "list of token ids"),
        ({"xtc_special_tokens": "ab"}, "list of token ids"),
        ({"xtc_special_tokens": 0}, "list of token ids"),
        ({"verbose": True}, "generate has it"),
        ({"draft": "no"}, "draft has to be True or False, and is 'no'"),
        ({"copy": 0}, "copy has to be True or False"),
    ],
)
def test_what_is_refused(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        stream_generate(model, tokenizer, PROMPT, **options)


@pytest.mark.parametrize(
    "chosen", [10**7, -5, [3, 4], 5.0], ids=["beyond", "negative", "two", "a fraction"]
)
def test_what_a_sampler_returns_has_to_be_a_token(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, chosen: Any
) -> None:
    """The step after it is under way by then, and looks its embedding up."""
    with pytest.raises(RedrafterError, match=r"sampler (has to return|returned)"):
        ids(model, tokenizer, draft=False, sampler=lambda _: mx.array([chosen]))


@pytest.mark.parametrize("chosen", [None, "a", []])
def test_what_a_sampler_returns_has_to_be_numbers(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, chosen: Any
) -> None:
    with pytest.raises(RedrafterError, match="sampler has to return one token id"):
        ids(model, tokenizer, draft=False, sampler=lambda _: chosen)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda _: None, "returned a NoneType"),
        (np.array, "returned a ndarray"),
        (lambda logits: logits[0], "of shape"),
        (lambda logits: logits[:, :5], "of shape"),
    ],
    ids=["nothing", "numpy", "a row", "few"],
)
def test_what_a_processor_returns_has_to_be_logits(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, returns: Any, words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        ids(model, tokenizer, logits_processors=[lambda _, logits: returns(logits)])


def test_a_sampler_may_return_a_number(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    assert ids(model, tokenizer, draft=False, sampler=lambda _: 7, max_tokens=3) == [7, 7, 7]


def test_none_means_the_default(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    unset = dict.fromkeys(
        ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "draft", "logit_bias", "sampler")
    )
    assert ids(model, tokenizer, **unset) == ids(model, tokenizer)
    assert SamplingConfig(temperature=np.float32(0.5), top_k=np.int64(3)).temperature == 0.5  # type: ignore[arg-type]


def test_numbers_and_ids_may_be_numpys_or_mlxs(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    plain: dict[str, Any] = {"beam_width": 2, "temperature": 1.0, "seed": 1, "xtc_probability": 0.9}
    expected = ids(model, tokenizer, **plain, xtc_special_tokens=[1, 2])
    for array in (np.array([1, 2]), mx.array([1, 2])):
        options = plain | {"beam_width": np.int64(2), "xtc_special_tokens": array}
        assert ids(model, tokenizer, **options) == expected
    assert ids(model, tokenizer, **plain, xtc_special_tokens=np.array([], np.int32))
    options = CacheOptions(kv_bits=np.int64(8), quantized_kv_start=np.int32(0))  # type: ignore[arg-type]
    assert options == CacheOptions(kv_bits=8, quantized_kv_start=0)


def test_sampling_may_be_given_whole(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    whole = SamplingConfig(1.0, top_k=9, seed=3)
    assert ids(model, tokenizer, sampling=whole) == ids(
        model, tokenizer, temperature=1.0, top_k=9, seed=3
    )
    assert ids(model, tokenizer, sampling=whole, seed=4) == ids(
        model, tokenizer, temperature=1.0, top_k=9, seed=4
    )
    with pytest.raises(RedrafterError, match="sampling has to be a SamplingConfig"):
        ids(model, tokenizer, sampling={"temperature": 1.0})


def test_cold_temperatures_are_greedy(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    assert ids(model, tokenizer, temperature=1e-37, seed=1) == ids(model, tokenizer)


def test_a_sampler_goes_with_bias_penalties_and_an_empty_configuration(
    model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> None:
    sampling = SamplingConfig(repetition_penalty=1.5, logit_bias={5: 3.0}, logprobs=2)
    options: dict[str, Any] = {"sampling": sampling, "draft": False}
    assert ids(model, tokenizer, sampler=make_sampler(0.0), **options) == ids(
        model, tokenizer, **options
    )


def test_verbose_writes_the_text_and_speeds(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, capsys: pytest.CaptureFixture[str]
) -> None:
    text = generate(model, tokenizer, PROMPT, max_tokens=5, verbose=True)
    out = capsys.readouterr().out
    assert text in out
    assert "tokens-per-sec" in out
    generate(model, tokenizer, PROMPT, max_tokens=5)
    assert capsys.readouterr().out == ""
    wrong: Any = "no"
    generate(model, tokenizer, PROMPT, True, max_tokens=5)  # as mlx-lm takes it
    assert capsys.readouterr().out.startswith("=")
    with pytest.raises(RedrafterError, match="verbose has to be True or False"):
        generate(model, tokenizer, PROMPT, verbose=wrong)


def test_a_tokenizer_of_transformers(model: SpeculativeModel, tokenizer: TokenizerWrapper) -> None:
    plain = tokenizer._tokenizer
    assert ids(model, plain) == ids(model, tokenizer)
    assert batch_generate(model, plain, [PROMPT], max_tokens=12).token_ids == [
        ids(model, tokenizer)
    ]
