"""Drafted text is plain text, and plain text is mlx-lm's, in float32."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

import models
from mlx_redrafter.cache import attention as cache_module
from mlx_redrafter.cache.attention import TreeKVCache
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step import DecodedToken
from mlx_redrafter.sampling import SamplingConfig

NAMES = ("llama", "llama:sliding", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v2")
OTHERS = ("qwen2", "phi3", "phi3:longrope", "cohere2", "olmo2", "mixtral", "qwen3_moe")


def quick(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def samplings(draw: st.DrawFn) -> SamplingConfig:
    """Greedy about half of the time; filters and penalties each on or off."""

    def maybe(strategy: st.SearchStrategy[float], off: float | None) -> float | None:
        return draw(strategy) if draw(st.booleans()) else off

    penalties = {
        "repetition_penalty": maybe(st.sampled_from([0.7, 1.3, 2.0]), None),
        "presence_penalty": maybe(st.sampled_from([-0.5, 0.8, 2.0]), None),
        "frequency_penalty": maybe(st.sampled_from([-0.3, 0.5, 1.5]), None),
    }
    contexts = {
        name.replace("penalty", "context_size"): draw(st.integers(1, 30)) for name in penalties
    }
    return SamplingConfig(
        temperature=draw(st.sampled_from([0.0, 0.4, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 30])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.3, 0.9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.3])),
        seed=draw(st.integers(0, 2**63 - 1)),
        **penalties,
        **contexts,
    )


def run(
    model: SpeculativeModel, prompt: list[int], config: DecodingConfig
) -> tuple[list[DecodedToken], AcceptanceStats]:
    stats = AcceptanceStats()
    return list(decode(model, prompt, config, stats=stats)), stats


def ids(tokens: list[DecodedToken]) -> list[int]:
    return [decoded.token for decoded in tokens]


def plain_text(
    model: nn.Module,
    prompt: list[int],
    max_tokens: int,
    sampling: SamplingConfig,
    chunk: int = 2048,
) -> list[int]:
    config = DecodingConfig(max_tokens, sampling, draft=False, prefill_step_size=chunk)
    return ids(run(SpeculativeModel(model), prompt, config)[0])


def mlx_lm_text(
    model: nn.Module,
    prompt: list[int],
    max_tokens: int,
    sampling: SamplingConfig,
    chunk: int = 2048,
) -> list[int]:
    """mlx-lm's greedy text, with its penalties."""
    processors = make_logits_processors(
        repetition_penalty=sampling.repetition_penalty,
        repetition_context_size=sampling.repetition_context_size,
        presence_penalty=sampling.presence_penalty,
        presence_context_size=sampling.presence_context_size,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=sampling.frequency_context_size,
    )
    steps = generate_step(
        mx.array(prompt),
        model,
        max_tokens=max_tokens,
        logits_processors=processors,
        prefill_step_size=chunk,
    )
    return [int(token) for token, _ in steps]


def assert_hidden_truth_is_found(
    name: str,
    prompt: list[int],
    plain: list[int],
    sampling: SamplingConfig,
    *,
    trees: int,
    max_depth: int = 4,
    chunk: int = 2048,
) -> AcceptanceStats:
    """Draft trees in which the plain text hides: the text is the same, and they are accepted."""
    source = models.ScriptedSource(
        prompt + plain, seed=trees, max_depth=max_depth, siblings=trees % 9
    )
    config = DecodingConfig(len(plain), sampling, prefill_step_size=chunk)
    drafted, stats = run(SpeculativeModel(models.shared(name), source), prompt, config)
    assert ids(drafted) == plain
    steps = [decoded.step for decoded in drafted]
    assert steps[0] is None
    accepted = [step.accepted for before, step in pairwise(steps) if step and step is not before]
    assert accepted == source.expected
    assert sum(accepted) == stats.accepted == sum(decoded.from_draft for decoded in drafted)
    return stats


@pytest.mark.parametrize("name", NAMES)
def test_any_tree_any_sampling(name: str) -> None:
    accepted = []

    @quick(10)
    @given(
        sampling=samplings(),
        length=st.integers(1, 30),
        seed=st.integers(0, 1000),
        trees=st.integers(0, 1000),
        chunk=st.sampled_from([1, 7, 2048]),
    )
    def check(sampling: SamplingConfig, length: int, seed: int, trees: int, chunk: int) -> None:
        prompt = models.prompt_of(length, seed=seed)
        model = models.shared(name)
        plain = plain_text(model, prompt, 24, sampling, chunk)
        assert len(plain) == 24
        if sampling.temperature == 0:
            assert plain == mlx_lm_text(model, prompt, 24, sampling, chunk)
        stats = assert_hidden_truth_is_found(
            name, prompt, plain, sampling, trees=trees, chunk=chunk
        )
        accepted.append(stats.accepted)

    check()
    assert sum(accepted) > 4 * len(accepted)


@pytest.mark.parametrize("name", OTHERS)
def test_one_tree_run_of_each_other_architecture(name: str) -> None:
    prompt = models.prompt_of(3 * models.WINDOW)
    for sampling in (SamplingConfig(), SamplingConfig(1.0, presence_penalty=0.5, seed=3)):
        plain = plain_text(models.shared(name), prompt, 20, sampling)
        if sampling.temperature == 0:
            assert plain == mlx_lm_text(models.shared(name), prompt, 20, sampling)
        stats = assert_hidden_truth_is_found(name, prompt, plain, sampling, trees=7)
        assert stats.accepted > 4


def test_without_chance_mlx_lm_samples_the_same() -> None:
    """At top_k = 1 mlx-lm's sampler has one token to draw from."""
    model = models.shared("llama")
    prompt = models.prompt_of(9)
    assert plain_text(model, prompt, 16, SamplingConfig(1.0, top_k=1)) == mlx_lm_text(
        model, prompt, 16, SamplingConfig()
    )


@pytest.mark.parametrize("name", NAMES)
def test_recurrent_drafter(name: str) -> None:
    model = models.shared(name)

    @quick(6)
    @given(
        sampling=samplings(),
        seed=st.integers(0, 1000),
        width=st.integers(1, 6),
        length=st.integers(1, 6),
        budget=st.none() | st.integers(1, 12),
        rnn=st.booleans(),
        draft_vocab_size=st.sampled_from([None, 20]),
        exit_dim=st.sampled_from([2 * models.HIDDEN, 24]),
        lookback=st.sampled_from([0, 3, 40]),
    )
    def check(
        sampling: SamplingConfig,
        seed: int,
        width: int,
        length: int,
        budget: int | None,
        rnn: bool,
        draft_vocab_size: int | None,
        exit_dim: int,
        lookback: int,
    ) -> None:
        drafter = models.build_drafter(
            rnn=rnn, draft_vocab_size=draft_vocab_size, exit_dim=exit_dim, lookback=lookback,
            seed=seed,
        )  # fmt: skip
        prompt = models.prompt_of(12, seed=seed)
        plain = plain_text(model, prompt, 16, sampling)
        config = DecodingConfig(16, sampling, beam=BeamShape(width, length, budget))
        drafted, stats = run(SpeculativeModel(model, drafter), prompt, config)
        assert ids(drafted) == plain
        assert stats.drafted == stats.steps * config.beam.nodes

    check()


def copying_drafter(model: nn.Module) -> models.RecurrentDrafter:
    """A drafter that reads the target's hidden state with the target's own output rows.

    It repeats, at every depth, the token that the target has just chosen; where the target does
    that too its drafts are accepted.
    """
    drafter = models.build_drafter(exit_dim=2 * models.HIDDEN, num_draft_layers=0, rnn=False)
    rows = model.lm_head.weight
    drafter.lm_head[0].weight = mx.concatenate([rows, mx.zeros_like(rows)], axis=1)
    return drafter


@pytest.mark.parametrize("name", ["llama", "llama:sliding", "qwen3"])
def test_recurrent_drafter_whose_drafts_are_accepted(name: str) -> None:
    """A target whose text repeats each token several times, and a drafter that repeats."""
    model = models.build(name)
    model.lm_head.weight = 0.5 * model.lm_head.weight + 0.5 * model.model.embed_tokens.weight
    drafter = copying_drafter(model)
    for sampling in (
        SamplingConfig(),
        SamplingConfig(0.7, seed=5),
        SamplingConfig(1.0, top_k=4, seed=8),
    ):
        for width, length, budget in ((1, 4, None), (3, 3, None), (4, 5, 9)):
            prompt = models.prompt_of(20)
            plain = plain_text(model, prompt, 40, sampling)
            config = DecodingConfig(40, sampling, beam=BeamShape(width, length, budget))
            drafted, stats = run(SpeculativeModel(model, drafter), prompt, config)
            assert ids(drafted) == plain
            assert stats.accepted > 0


@pytest.mark.parametrize("name", ["llama:sliding", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_windows_whose_buffers_are_compacted(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks and a small margin: the window's buffer is moved every few steps."""
    monkeypatch.setattr(TreeKVCache, "step", 16)
    monkeypatch.setattr(cache_module, "REWIND_MARGIN", 8)
    sampling = SamplingConfig(temperature, seed=11)
    prompt = models.prompt_of(4 * models.WINDOW)
    model = models.shared(name)
    plain = plain_text(model, prompt, 120, sampling, chunk=10)
    if temperature == 0:
        assert plain == mlx_lm_text(model, prompt, 120, sampling, chunk=10)
    for trees in (1, 8):
        stats = assert_hidden_truth_is_found(
            name, prompt, plain, sampling, trees=trees, chunk=10, max_depth=6
        )
        assert stats.accepted > 20


def test_a_window_past_its_real_buffer() -> None:
    """Long enough for the buffer to be compacted as it is in use, without small blocks."""
    name = "llama:sliding"
    prompt = models.prompt_of(300)
    plain = plain_text(models.shared(name), prompt, 330, SamplingConfig())
    assert plain == mlx_lm_text(models.shared(name), prompt, 330, SamplingConfig())
    assert_hidden_truth_is_found(name, prompt, plain, SamplingConfig(), trees=4)


@quick(15)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=2, unique=True),
    prompt_seed=st.integers(0, 1000),
)
def test_seeds_name_texts(seeds: list[int], prompt_seed: int) -> None:
    """The same seed gives the same text; at a high temperature another seed gives another."""
    model = models.shared("llama")
    prompt = models.prompt_of(4, seed=prompt_seed)
    one, again, other = (
        plain_text(model, prompt, 16, SamplingConfig(3.0, seed=seed))
        for seed in (seeds[0], seeds[0], seeds[1])
    )
    assert one == again
    assert one != other


def test_two_texts_at_once_on_one_model() -> None:
    """Generators that take turns, drafted and plain, do not disturb one another."""
    model = models.shared("llama:sliding")
    sampling = SamplingConfig(1.0, seed=2)
    prompts = [models.prompt_of(length) for length in (5, 17)]
    alone = [plain_text(model, prompt, 20, sampling) for prompt in prompts]
    drafting = SpeculativeModel(model, models.ScriptedSource(prompts[0] + alone[0]))
    streams = [
        decode(drafting, prompts[0], DecodingConfig(20, sampling)),
        decode(SpeculativeModel(model), prompts[1], DecodingConfig(20, sampling)),
    ]
    together = [[one.token, other.token] for one, other in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*together, strict=True)] == alone


def test_half_precision_drafts_too() -> None:
    """bfloat16 may part from the plain text only at near ties; here it runs and accepts."""
    model = models.build("llama")
    model.set_dtype(mx.bfloat16)
    drafter = models.build_drafter()
    drafter.set_dtype(mx.bfloat16)
    prompt = models.prompt_of(10)
    for sampling in (SamplingConfig(), SamplingConfig(1.0, top_p=0.9, repetition_penalty=1.2)):
        drafted, stats = run(SpeculativeModel(model, drafter), prompt, DecodingConfig(12, sampling))
        assert len(drafted) == 12
        assert stats.tokens == 11
        first = plain_text(model, prompt, 1, sampling)
        assert drafted[0].token == first[0]
