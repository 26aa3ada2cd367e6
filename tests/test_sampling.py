from __future__ import annotations

from dataclasses import replace
from math import sqrt

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors, make_sampler

import models
from mlx_redrafter.decoding import DecodingConfig, decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.model import SpeculativeModel
from mlx_redrafter.sampling import (
    NOISE_BLOCK,
    Sampler,
    SamplingConfig,
    noise_rows,
    penalise,
    scores,
)
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


# Noise


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**20), count=st.integers(1, 9))
def test_a_row_depends_on_seed_and_position_only(seed: int, first: int, count: int) -> None:
    block = noise_rows(seed, first, count, 11)
    assert block.shape == (count, 11)
    assert block.dtype == mx.float32
    for index in range(count):
        assert mx.array_equal(block[index : index + 1], noise_rows(seed, first + index, 1, 11))


def test_rows_of_a_sampler_do_not_depend_on_how_they_are_asked_for() -> None:
    config = SamplingConfig(1.0, seed=7)
    wanted = noise_rows(7, 0, 80, V)
    for asked in ([(3, 5), (4, 1), (9, 20), (17, 40), (18, 1)], [(60, 6), (2, 3)], [(15, 2)]):
        sampler = Sampler(config, V)
        for first, count in asked:
            rows = sampler.noise(first, count)
            assert rows is not None
            assert mx.array_equal(rows, wanted[first : first + count])


def test_a_sampler_keeps_no_more_blocks_than_it_needs() -> None:
    sampler = Sampler(SamplingConfig(1.0), V)
    for first in range(0, 100, 3):
        sampler.noise(first, 5)
        assert len(sampler._blocks) <= 2
    assert max(sampler._blocks) == 103 // NOISE_BLOCK


def test_rows_differ_by_seed_and_by_position() -> None:
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1]
    rows = np.stack([np.array(noise_rows(seed, 0, 40, 16)) for seed in seeds]).reshape(-1, 16)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # No more alike than chance: the largest of about 50,000 correlations of 16 numbers.
    like = np.corrcoef(rows)
    np.fill_diagonal(like, 0)
    assert np.abs(like).max() < 0.93


def test_noise_is_gumbel() -> None:
    values = np.sort(np.array(noise_rows(3, 100, 200, 250)).ravel())
    assert np.isfinite(values).all()
    uniform = np.exp(-np.exp(-values))
    distance = np.abs(uniform - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert distance < 1.95 / sqrt(len(values))  # Kolmogorov and Smirnov at one in a thousand
    assert values.mean() == pytest.approx(0.5772, abs=0.03)


def test_greedy_has_no_noise() -> None:
    assert Sampler(SamplingConfig(), V).noise(3, 4) is None


@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_a_texts_noise_is_that_of_its_positions(length: int) -> None:
    """Position 0 is the prompt's first token's, so the first token drawn stands at its length."""
    model, prompt = models.shared("llama"), models.prompt_of(length)
    config = DecodingConfig(3, SamplingConfig(4.0, seed=2))
    text = [decoded.token for decoded in decode(SpeculativeModel(model), prompt, config)]
    logits = model(mx.array([[*prompt, *text]]))[0, length - 1 : -1]
    drawn = mx.argmax(logits / 4.0 + noise_rows(2, length, 3, V), axis=-1)
    assert text == drawn.tolist()


@pytest.mark.parametrize("drafts", [True, False])
def test_decoding_leaves_the_global_random_state_alone(drafts: bool) -> None:
    model = SpeculativeModel(models.shared("llama"), models.build_drafter())
    mx.random.seed(5)
    before = [np.array(state) for state in mx.random.state]
    config = DecodingConfig(12, SamplingConfig(1.0, top_k=9, top_p=0.9, min_p=0.01), draft=drafts)
    first = [decoded.token for decoded in decode(model, [1, 2, 3], config)]
    for state, old in zip(mx.random.state, before, strict=True):
        np.testing.assert_array_equal(np.array(state), old)
    mx.random.seed(6)
    assert [decoded.token for decoded in decode(model, [1, 2, 3], config)] == first


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
    assert choice.swayed is None


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
    kept = before[-(config.history_size - 1) :] if config.history_size > 1 else []
    got = np.array(penalise(logits, tree, kept, config))
    for node in range(len(tokens)):
        line, at = [], node
        while at != -1:
            line.insert(0, tokens[at])
            at = parents[at]
        wanted = mlx_lm_penalised(config, logits[node], before + line)
        np.testing.assert_allclose(got[node], wanted, rtol=1e-5, atol=1e-5)


def test_penalties_do_not_write_into_the_logits() -> None:
    logits = logits_of(6, rows=1)
    before = np.array(logits)
    mx.eval(
        penalise(logits, DraftTree.root_only(mx.array([3])), [1, 2], SamplingConfig(**PENALTIES[6]))
    )
    np.testing.assert_array_equal(np.array(logits), before)


def test_more_history_than_needed_is_harmless() -> None:
    config = SamplingConfig(**PENALTIES[6])
    tree, logits = DraftTree.from_parents([1, 2], [-1, 0]), logits_of(7, rows=2)
    few = penalise(logits, tree, list(range(20))[-6:], config)
    assert mx.array_equal(few, penalise(logits, tree, list(range(20)), config))


def test_zero_penalties_are_off_as_in_mlx_lm() -> None:
    config = SamplingConfig(repetition_penalty=0.0, presence_penalty=0.0, frequency_penalty=0.0)
    assert config.penalties == ()
    assert config.history_size == 0


def test_history_size_is_the_largest_context_that_is_on() -> None:
    config = SamplingConfig(
        presence_penalty=1.0, presence_context_size=5, frequency_context_size=50
    )
    assert config.history_size == 5
    assert replace(config, frequency_penalty=1.0).history_size == 50


# Choosing


def test_a_choice_uses_the_noise_of_its_depth() -> None:
    config = SamplingConfig(1.0, seed=3)
    sampler = Sampler(config, V)
    tree = DraftTree.from_parents([1, 2, 3, 4, 5], [-1, 0, 0, 2, 3])
    logits, noise = logits_of(8), sampler.noise(20, 4)
    tokens, swayed = sampler.choose(logits, tree, noise, [])
    choices = tokens.tolist()
    assert swayed is not None
    assert swayed.tolist() == (mx.argmax(logits, axis=-1) != tokens).tolist()
    assert any(swayed.tolist())
    for node, depth in enumerate([0, 1, 1, 2, 3]):
        alone = scores(config, logits[node], noise_rows(3, 20 + depth, 1, V)[0])
        assert choices[node] == mx.argmax(alone).item()


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
        ("top_p", 0.0),
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
