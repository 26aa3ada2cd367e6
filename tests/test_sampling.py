from __future__ import annotations

from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import make_logits_processors, make_sampler

import models
from mlx_redrafter import sampler as sampler_module
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.logits import penalise
from mlx_redrafter.noise import noise_rows
from mlx_redrafter.sampler import Sampler
from mlx_redrafter.sampling import SamplingConfig, scores
from mlx_redrafter.tree import DraftTree

V = models.VOCAB


def chi_square_limit(dof: int) -> float:
    """What chi-square exceeds once in a thousand times (Wilson and Hilferty)."""
    return dof * (1 - 2 / (9 * dof) + 3.09 * sqrt(2 / (9 * dof))) ** 3


def assert_follows(counts: np.ndarray, expected: np.ndarray) -> None:
    """Counts agree with what was expected; rare outcomes are put together."""
    assert counts[expected == 0].sum() == 0, "something impossible happened"
    order = np.argsort(-expected)
    counts, expected = counts[order], expected[order]
    common = max(1, int((expected >= 5).sum()))
    observed = np.append(counts[:common], counts[common:].sum())
    wanted = np.append(expected[:common], expected[common:].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 2
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert statistic < chi_square_limit(len(wanted) - 1)


def test_the_check_itself_notices() -> None:
    expected = np.array([500.0, 300.0, 150.0, 50.0])
    assert_follows(np.array([510.0, 290.0, 155.0, 45.0]), expected)
    with pytest.raises(AssertionError):
        assert_follows(np.array([560.0, 240.0, 150.0, 50.0]), expected)
    assert 16.0 < chi_square_limit(3) < 16.8
    assert 37.4 < chi_square_limit(15) < 38.0


# Filters


def logits_of(seed: int, rows: int = 5, vocab_size: int = V) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array((3 * rng.standard_normal((rows, vocab_size))).astype(np.float32))


def mlx_lm_kept(config: SamplingConfig, logits: mx.array) -> np.ndarray:
    """Which tokens mlx-lm's sampler can draw, and their log-probabilities; -inf for the others."""
    seen = []
    sampler = make_sampler(
        temp=config.temperature, top_p=config.top_p, min_p=config.min_p, top_k=config.top_k
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mlx_lm.sample_utils.categorical_sampling",
            lambda filtered, temp: seen.append(filtered * (1.0 / temp)) or mx.array([0]),
        )
        sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return np.array(seen[0])


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.5},
    {"top_p": 0.01},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_are_mlx_lms(filters: dict[str, float], temperature: float) -> None:
    config = SamplingConfig(temperature, **filters)
    logits = logits_of(1)
    got = np.array(scores(config, logits, mx.zeros((V,))))
    np.testing.assert_allclose(got, mlx_lm_kept(config, logits), rtol=1e-5, atol=1e-5)
    assert np.isfinite(got).any(axis=-1).all()


def test_noise_is_added_to_what_is_left() -> None:
    config = SamplingConfig(0.5, top_k=4)
    noise = noise_rows(1, 0, 5, V)
    plain = scores(config, logits_of(2), mx.zeros((V,)))
    assert mx.allclose(scores(config, logits_of(2), noise), plain + noise)


def test_greedy_ignores_filters() -> None:
    logits = logits_of(3)
    choice = Sampler(SamplingConfig(top_k=1, top_p=0.1, min_p=1.0), V).choose(
        logits, DraftTree.from_parents([0] * 5, [-1, 0, 0, 0, 0]), None, []
    )
    assert choice.tokens.tolist() == mx.argmax(logits, axis=-1).tolist()
    assert choice.tokens.dtype == mx.int32
    assert choice.flipped_by_noise is None


def test_filters_work_row_by_row() -> None:
    config = SamplingConfig(1.0, top_p=0.7, top_k=9, min_p=0.01)
    logits, noise = logits_of(4), noise_rows(0, 0, 5, V)
    together = scores(config, logits, noise)
    for row in range(5):
        alone = scores(config, logits[row : row + 1], noise[row : row + 1])
        assert mx.array_equal(alone[0], together[row])


# Penalties

PENALTIES = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6, "repetition_context_size": 3},
    {"presence_penalty": 0.7},
    {"presence_penalty": -1.5, "presence_context_size": 2},
    {"frequency_penalty": 0.4},
    {"frequency_penalty": 1.1, "frequency_context_size": 4},
    {
        "repetition_penalty": 1.5,
        "repetition_context_size": 5,
        "presence_penalty": 0.5,
        "presence_context_size": 1,
        "frequency_penalty": 0.25,
        "frequency_context_size": 7,
    },
]


def mlx_lm_penalised(config: SamplingConfig, logits: mx.array, history: list[int]) -> np.ndarray:
    """mlx-lm's processors on one row, for one history."""
    processors = make_logits_processors(
        repetition_penalty=config.repetition_penalty,
        repetition_context_size=config.repetition_context_size,
        presence_penalty=config.presence_penalty,
        presence_context_size=config.presence_context_size,
        frequency_penalty=config.frequency_penalty,
        frequency_context_size=config.frequency_context_size,
    )
    row = logits[None] + 0
    for processor in processors:
        row = processor(mx.array(history), row)
    return np.array(row[0])


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize(
    "before",
    [[], [4], [4, 4], [9, 4, 9, 4, 4, 2, 1, 4], list(range(40)), [7] * 30],
    ids=lambda tokens: f"{len(tokens)} before",
)
def test_penalties_are_mlx_lms_for_every_node(
    penalties: dict[str, float], before: list[int]
) -> None:
    """Each row's own history: what came before the root, its ancestors and its own token."""
    config = SamplingConfig(**penalties)
    tokens, parents = [4, 9, 2, 4, 4, 9, 0], [-1, 0, 0, 1, 3, 2, 4]
    tree = DraftTree.from_parents(tokens, parents)
    logits = logits_of(5, rows=len(tokens))
    longest = max(size for _, _, size in config.penalties)
    kept = before[-(longest - 1) :] if longest > 1 else []
    got = np.array(penalise(logits, tree, kept, config.penalties))
    for node in range(len(tokens)):
        line, at = [], node
        while at != -1:
            line.insert(0, tokens[at])
            at = parents[at]
        wanted = mlx_lm_penalised(config, logits[node], before + line)
        np.testing.assert_allclose(got[node], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("penalty", "dtype"), [(1e6, mx.float16), (-1e6, mx.float16), (1e300, mx.float32)]
)
def test_a_penalty_beyond_the_precision_leaves_other_tokens_alone(
    penalty: float, dtype: mx.Dtype
) -> None:
    """Nodes whose histories are shorter than the longest are padded, which may cost nothing."""
    config = SamplingConfig(frequency_penalty=penalty)
    tree = DraftTree.from_parents([5, 6, 7], [-1, 0, 1])
    logits = mx.random.normal((3, models.VOCAB), key=mx.random.key(1)).astype(dtype)
    got = penalise(logits, tree, [3, 4, 3], config.penalties)
    for node, history in enumerate(([3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6, 7])):
        others = mx.array([token for token in range(models.VOCAB) if token not in history])
        assert mx.all(got[node, mx.array(history)] == (-mx.inf if penalty > 0 else mx.inf))
        assert mx.array_equal(got[node, others], logits[node, others])


def test_penalties_do_not_write_into_the_logits() -> None:
    logits = logits_of(6, rows=1)
    before = np.array(logits)
    one = SamplingConfig(**PENALTIES[6])
    mx.eval(penalise(logits, DraftTree.root_only(mx.array([3])), [1, 2], one.penalties))
    np.testing.assert_array_equal(np.array(logits), before)


def test_more_history_than_needed_is_harmless() -> None:
    config = SamplingConfig(**PENALTIES[6])
    tree, logits = DraftTree.from_parents([1, 2], [-1, 0]), logits_of(7, rows=2)
    few = penalise(logits, tree, list(range(20))[-6:], config.penalties)
    assert mx.array_equal(few, penalise(logits, tree, list(range(20)), config.penalties))


def test_zero_penalties_are_off_as_in_mlx_lm() -> None:
    config = SamplingConfig(repetition_penalty=0.0, presence_penalty=0.0, frequency_penalty=0.0)
    assert config.penalties == ()


# Choosing


def test_a_choice_uses_the_noise_of_its_depth() -> None:
    config = SamplingConfig(1.0, seed=3)
    sampler = Sampler(config, V)
    tree = DraftTree.from_parents([1, 2, 3, 4, 5], [-1, 0, 0, 2, 3])
    logits, noise = logits_of(8), sampler.noise(20, 4)
    tokens, flipped_by_noise, *_ = sampler.choose(logits, tree, noise, [])
    choices = tokens.tolist()
    assert flipped_by_noise is not None
    assert flipped_by_noise.tolist() == (mx.argmax(logits, axis=-1) != tokens).tolist()
    assert any(flipped_by_noise.tolist())
    untold = sampler.choose(logits, tree, noise, [], tells_noise=False)
    assert untold.flipped_by_noise is None
    assert untold.tokens.tolist() == choices
    for node, depth in enumerate([0, 1, 1, 2, 3]):
        alone = scores(config, logits[node], noise_rows(3, 20 + depth, 1, V)[0])
        assert choices[node] == mx.argmax(alone).item()


def test_bias_is_mlx_lms_and_comes_before_penalties() -> None:
    bias = {3: 2.5, 7: -100.0, 0: 0.5}
    config = SamplingConfig(logit_bias=tuple(bias.items()), repetition_penalty=1.3, logprobs=3)
    tree = DraftTree.root_only(mx.array([3]))
    logits, history = logits_of(5, rows=1), [7, 1]
    processed = logits
    for processor in make_logits_processors(bias, repetition_penalty=1.3):
        processed = processor(mx.array([*history, 3]), processed)
    wanted = processed - mx.logsumexp(processed, axis=-1, keepdims=True)
    choices = Sampler(config, V).choose(logits, tree, None, history)
    assert choices.logprobs is not None
    assert choices.top_tokens is not None
    assert choices.top_logprobs is not None
    assert choices.tokens.item() == mx.argmax(wanted).item()
    assert choices.logprobs.item() == pytest.approx(mx.max(wanted).item(), abs=1e-5)
    likeliest = mx.argsort(-wanted[0])[:3].tolist()
    assert sorted(choices.top_tokens[0].tolist()) == sorted(likeliest)
    assert np.allclose(wanted[0][choices.top_tokens[0]], choices.top_logprobs[0], atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"logit_bias": ((V, 1.0),)}, {"logit_bias": ((1, np.inf),)}, {"logprobs": -1}]
)
def test_bias_and_log_probabilities_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(RedrafterError, match=next(iter(wrong))):
        Sampler(SamplingConfig(**wrong), V)


def test_one_choice_a_node() -> None:
    """Noise for deeper positions than the tree has changes nothing."""
    sampler = Sampler(SamplingConfig(1.0, seed=3), V)
    logits, noise = logits_of(9, rows=1), sampler.noise(20, 6)
    assert noise is not None
    tree = DraftTree.root_only(mx.array([1]))
    choices = sampler.choose(logits, tree, noise, []).tokens
    assert choices.shape == (1,)
    assert choices.tolist() == sampler.choose(logits, tree, noise[:1], []).tokens.tolist()


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.15}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_draws_follow_the_softmax(filters: dict[str, float], temperature: float) -> None:
    """The same logits at 6,000 positions."""
    config = SamplingConfig(temperature, seed=1, **filters)
    logits = logits_of(10, rows=1, vocab_size=12) / 2
    n = 6000
    noise = noise_rows(1, 0, n, 12)
    draws = mx.argmax(scores(config, mx.broadcast_to(logits, (n, 12)), noise), axis=-1)
    kept = mlx_lm_kept(config, logits)[0]
    probs = np.exp(kept - kept.max())
    assert_follows(np.bincount(np.array(draws), minlength=12), n * probs / probs.sum())


@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("kind", ["plain", "drafted"])
def test_a_texts_tokens_follow_the_targets_softmax(kind: str, top_k: int) -> None:
    """Ranks of the tokens drawn, against the sum of the target's probabilities at each rank."""
    vocab_size, n = 16, 500
    model = models.build("llama", vocab_size=vocab_size, num_hidden_layers=1)
    model.lm_head.weight = 0.4 * model.lm_head.weight
    drafter = models.build_drafter(vocab_size=vocab_size) if kind == "drafted" else None
    config = DecodingConfig(n, SamplingConfig(1.2, top_k=top_k, seed=8))
    prompt = [3, 1, 4]
    text = [token.token for token in decode(SpeculativeModel(model, drafter), prompt, config)]
    logits = np.array(model(mx.array([[*prompt, *text]]))[0, len(prompt) - 1 : -1]) / 1.2
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    order = np.argsort(-probs, axis=-1)
    probs = np.take_along_axis(probs, order, axis=-1)
    if top_k:
        probs[:, top_k:] = 0
    probs /= probs.sum(axis=-1, keepdims=True)
    ranks = [list(row).index(token) for row, token in zip(order, text, strict=True)]
    assert_follows(np.bincount(ranks, minlength=vocab_size), probs.sum(axis=0))


def test_draws_at_neighbouring_positions_are_independent() -> None:
    draws = np.array(mx.argmax(noise_rows(4, 0, 8000, 4), axis=-1))
    pairs = 4 * draws[:-1] + draws[1:]
    assert_follows(np.bincount(pairs, minlength=16), np.full(16, len(pairs) / 16))


def test_draws_of_two_seeds_are_independent() -> None:
    one, other = (np.array(mx.argmax(noise_rows(seed, 0, 8000, 4), axis=-1)) for seed in (0, 1))
    assert_follows(np.bincount(4 * one + other, minlength=16), np.full(16, len(one) / 16))


# Bad values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("seed", -1),
        ("seed", 2**63),
        ("repetition_penalty", -1.0),
        ("repetition_context_size", 0),
        ("presence_context_size", -1),
        ("frequency_context_size", 0),
    ],
)
def test_bad_values_are_refused(name: str, value: float) -> None:
    with pytest.raises(RedrafterError, match=f"^{name} is {value}, but has to be"):
        SamplingConfig(**{name: value})


def test_an_endless_temperature_is_refused() -> None:
    with pytest.raises(RedrafterError, match="temperature"):
        SamplingConfig(temperature=float("inf"))


def test_top_k_has_to_be_below_the_vocabulary() -> None:
    Sampler(SamplingConfig(1.0, top_k=V - 1), V)
    with pytest.raises(RedrafterError, match=f"top_k is {V}"):
        Sampler(SamplingConfig(1.0, top_k=V), V)


def test_noise_of_rejected_drafts_waits_for_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = sampler_module.noise_rows

    def counted(seed: int, first: int, count: int, vocab_size: int) -> mx.array:
        made.append(first)
        return real(seed, first, count, vocab_size)

    monkeypatch.setattr(sampler_module, "noise_rows", counted)
    sampler = Sampler(SamplingConfig(1.0, seed=3), 16)
    for first in range(10, 400, 3):
        rows = sampler.noise(first, 33 if first % 2 else 1)
        assert rows is not None
        assert mx.array_equal(rows[0], real(3, first, 1, 16)[0])
    assert len(made) == len(set(made)), "a block was made twice"
    assert len(sampler._blocks) <= sampler_module.KEPT_BLOCKS
