"""Who answers when, what times come to, and where texts differ."""

from __future__ import annotations

import shutil
from dataclasses import replace

import mlx.core as mx
import pytest
from bundles import make_bundle
from planning_machines import KNOWN, REAL, recorded_of

from mlx_redrafter import load
from mlx_redrafter.benchmark.agreement import compare, decision, first_difference
from mlx_redrafter.benchmark.contestants import (
    Answer,
    MlxLm,
    Ours,
    Task,
    TwoModels,
    load_draft_model,
    stats_of_drafted,
    time_answer,
)
from mlx_redrafter.benchmark.measuring import Spread, measure, summarise, turn_order
from mlx_redrafter.benchmark.precision import load_at, other_drafter
from mlx_redrafter.benchmark.prompts import Prompt
from mlx_redrafter.conversion import convert
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.kinds import drafter_of
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.drafter_files import save_drafter, save_recorded
from mlx_redrafter.text.generate import stream_generate

IDS = (5, 40, 41, 42)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", context=400)


@pytest.fixture(scope="module")
def loaded(bundle):
    return load(bundle, dtype=mx.float32)


def task(loaded, temperature=0.0, max_tokens=12):
    return Task(loaded[1], max_tokens, SamplingConfig(temperature=temperature, seed=3))


class Fake:
    """A contestant that writes what it is told to, and notes when."""

    description, weight_bytes, reproducible = "fake", 1000, True

    def __init__(self, name, log, tokens=(1, 2)):
        self.name, self._log, self._tokens = name, log, tokens

    def tokens(self, prompt, task):
        self._log.append((self.name, prompt[0]))
        return iter(self._tokens)

    def stats(self):
        return None

    def at_once(self):
        return 1


def prompts(*firsts):
    return [Prompt(f"prompt {first}", "", 1, (first,)) for first in firsts]


def test_contestants_take_turns_within_each_prompt_in_rotating_order():
    log = []
    contestants = [Fake("a", log), Fake("b", log), Fake("c", log)]
    rounds = list(measure(contestants, prompts(7, 8, 9), None, repeats=2))
    assert log[:6] == [(name, first) for first, name in zip(
        (7, 7, 7, 8, 8, 8), "abcbca", strict=True)]  # fmt: skip
    timed = "".join(name for name, _ in log[6:])
    assert timed == "abcbcacab" + "bcacababc"
    assert [first for _, first in log[6:15]] == [7, 7, 7, 8, 8, 8, 9, 9, 9]
    assert [sorted(round_) for round_ in rounds] == [["a", "b", "c"]] * 2
    assert all(len(answers) == 3 for round_ in rounds for answers in round_.values())


def test_each_contestant_is_first_equally_often():
    firsts = [turn_order("abcd", repeat, prompt)[0] for repeat in range(4) for prompt in range(6)]
    assert {firsts.count(name) for name in "abcd"} == {6}


def test_progress_ends_at_its_total():
    told = []
    list(measure([Fake("a", [])], prompts(1, 2, 3), None, 2, lambda *at: told.append(at)))
    assert told[0] == (0, 8)
    assert told[-1] == (8, 8)


def test_spread_has_quartiles():
    assert Spread.of([4.0]) == Spread(4, 4, 4, 4, 4, 1)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 10.0]) == Spread(3, 2, 4, 1, 10, 5)


def answer(tokens, seconds, first=0.5, memory=10, stats=None, at_once=1):
    return Answer(tuple(range(tokens)), seconds, first, memory, stats, at_once)


def test_speeds_are_sums_and_ratios_belong_to_a_repeat():
    stats = AcceptanceStats()
    stats.record([1, 2], 1, 2)
    rounds = [
        {"a": [answer(10, 1.0), answer(10, 3.0)], "b": [answer(10, 1.0, stats=stats)] * 2},
        {"a": [answer(10, 2.0), answer(10, 2.0)], "b": [answer(10, 4.0, memory=70)] * 2},
    ]
    a, b = summarise([Fake("a", []), Fake("b", [])], rounds)
    assert a.tokens_per_second == Spread.of([5.0, 5.0])
    assert b.tokens_per_second == Spread.of([10.0, 2.5])
    assert b.ratios["a"] == Spread.of([2.0, 0.5])
    assert a.decode_tokens_per_second.median == pytest.approx(18 / 3)
    assert (a.tokens, a.memory_bytes, b.memory_bytes) == (20, 1010, 1070)
    assert a.stats is None
    assert (b.stats.steps, b.stats.accepted) == (2, 2)
    assert b.to_dict()["stats"]["acceptance_by_depth"] == [1.0, 0.0]


def test_what_comes_with_the_first_token_is_not_counted_behind_it():
    """Two models hand out a first step's tokens at once, whose time was before them."""
    (a,) = summarise([Fake("a", [])], [{"a": [answer(10, 4.0, first=3.0, at_once=6)]}])
    assert a.decode_tokens_per_second.median == pytest.approx(4.0)


def test_an_answer_is_the_contestants_tokens_with_its_times(loaded):
    model, tokenizer = loaded
    expected = [r.token for r in stream_generate(model, tokenizer, IDS, max_tokens=12, draft=False)]
    found = time_answer(Ours(model), IDS, task(loaded))
    assert list(found.tokens) == expected
    assert 0 < found.first_token_seconds <= found.seconds
    assert found.memory_bytes > 0
    assert found.stats.steps == len(expected) - 1


def test_plain_drafted_mlx_lm_and_two_models_write_the_same(loaded, bundle):
    model, tokenizer = loaded
    contestants = [
        MlxLm(model),
        Ours(model),
        Ours(model, "drafted", shape=BeamShape(2, 3)),
        TwoModels(model, load_draft_model(str(bundle), tokenizer), 3),
    ]
    answers = [time_answer(contestant, IDS, task(loaded)) for contestant in contestants]
    assert len({found.tokens for found in answers}) == 1
    assert answers[0].stats is None
    assert answers[2].stats.drafted == 6 * answers[2].stats.steps
    # The draft model is the target itself: every step takes all three tokens and adds one.
    assert answers[3].stats.tokens_per_step == 4
    # mlx-lm's two models draft from the prompt on.
    assert [found.at_once for found in answers] == [1, 1, 1, 4]
    assert contestants[3].weight_bytes == 2 * contestants[1].weight_bytes
    assert contestants[2].weight_bytes > contestants[1].weight_bytes


def test_steps_of_two_models_are_told_from_what_was_drafted():
    stats = stats_of_drafted([True, True, False, False, True], size=2, max_tokens=10)
    assert (stats.steps, stats.tokens, stats.accepted) == (3, 5, 3)
    assert stats.acceptance_by_depth == [2 / 3, 1 / 2]
    # Near the end fewer tokens are drafted.
    stats = stats_of_drafted([True, True, False, False], size=2, max_tokens=4)
    assert (stats.steps, stats.drafted) == (2, 3)


def test_a_draft_model_of_another_vocabulary_is_refused(loaded, bundle, monkeypatch):
    class Other:
        vocab_size = 7

    with pytest.raises(RedrafterError, match="vocabulary"):
        load_draft_model(str(bundle), Other())


def test_first_difference():
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [4]) == 0


def logits_after(model, ids):
    return model.target.model(mx.array(ids)[None])[0, -1].astype(mx.float32)


def test_the_gap_is_that_of_the_targets_own_logits(loaded):
    model, _ = loaded
    row = logits_after(model, IDS)
    best, second = (int(i) for i in mx.argsort(-row)[:2].tolist())
    gap, between, score = decision(model, IDS, SamplingConfig(), second, best)
    assert gap == pytest.approx(float(row[best] - row[second]), abs=1e-4)
    assert between == pytest.approx(-gap)
    assert score == pytest.approx(float(row[best]), abs=1e-4)
    assert decision(model, IDS[:1], SamplingConfig(), None, 3)[1] is None


def test_sampled_scores_are_led_by_the_token_that_was_drawn(loaded):
    model, _ = loaded
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, seed=3)
    drawn = time_answer(Ours(model), IDS, replace(task(loaded), sampling=sampling)).tokens
    for position in range(4):
        context = [*IDS, *drawn[:position]]
        gap, between, _ = decision(model, context, sampling, drawn[position], 7)
        assert between >= gap > 0


def test_differences_are_found_with_their_gap(loaded):
    model, _ = loaded
    written = time_answer(Ours(model), IDS, task(loaded)).tokens
    changed = (*written[:4], (written[4] + 1) % 300, *written[5:])
    same, other = Fake("same", []), Fake("other", [])
    given = {"plain": written, "same": written, "other": changed}
    rounds = [
        {name: [replace(answer(1, 1.0), tokens=t)] for name, t in given.items()},
        {name: [replace(answer(1, 1.0), tokens=written[:3])] for name in given},
    ]
    asked = [Prompt("p", "", 1, IDS)]
    found = compare(other, "plain", asked, rounds, model, SamplingConfig())
    assert (found.comparable, found.identical, found.prompts) == (True, 0, 1)
    (difference,) = found.differences
    assert (difference.repeat, difference.position) == (0, 4)
    assert (difference.expected, difference.found) == (written[4], changed[4])
    row = logits_after(model, [*IDS, *written[:4]])
    top = sorted(row.tolist(), reverse=True)
    assert difference.gap == pytest.approx(top[0] - top[1], abs=1e-4)
    assert difference.between == pytest.approx(float(row[written[4]] - row[changed[4]]), abs=1e-4)
    # What is the same in the first repeat may still part in a later one.
    (later,) = compare(same, "plain", asked, rounds, model, SamplingConfig()).differences
    assert (later.repeat, later.position, later.found) == (1, 3, None)
    assert compare(same, "plain", asked, rounds[:1], model, SamplingConfig()).identical == 1


def test_sampled_text_of_mlx_lm_is_not_called_different(loaded):
    model, _ = loaded
    found = compare(MlxLm(model), "plain", prompts(1), [], model, SamplingConfig(temperature=1.0))
    assert not found.comparable
    assert found.differences == ()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "8bit", "4bit"])
def test_precisions(bundle, precision):
    model, _ = load_at(str(bundle), precision)
    down = model.target.model.layers[0].mlp.down_proj
    bits = getattr(down, "bits", None)
    assert bits == {"8bit": 8, "4bit": 4}.get(precision)
    if bits is None:
        assert down.weight.dtype == getattr(mx, precision)
    else:  # 64 inputs and more are quantised, the drafter's too
        assert any(hasattr(part, "bits") for _, part in model.drafter.named_modules())
    found = time_answer(Ours(model, shape=BeamShape(1, 2)), IDS, task((model, _), max_tokens=4))
    assert len(found.tokens) == 4


@pytest.mark.parametrize("precision", ["stored", "float16", "4bit"])
@pytest.mark.parametrize("kind", [{"shared_rows": True}, {"independent_heads": 3}])
def test_other_drafters_draft_for_the_same_target(bundle, tmp_path, kind, precision):
    model, tokenizer = load_at(str(bundle), precision)
    sizes = {"hidden_size": 32, "exit_dim": 32, "num_draft_layers": 1}
    config = DrafterConfig(vocab_size=model.target.vocab_size, **sizes, **kind)
    save_drafter(tmp_path, drafter_of(config))
    other = other_drafter(model, tokenizer, str(tmp_path), precision)
    assert other.target is model.target
    drafted = Ours(other, "drafted", shape=BeamShape(2, 3))
    found = time_answer(drafted, IDS, task((model, tokenizer)))
    assert found.stats.drafted == 6 * found.stats.steps
    if precision == "stored":
        assert found.tokens == time_answer(Ours(model), IDS, task((model, tokenizer))).tokens


@pytest.mark.parametrize("precision", ["4bit", "float16"])
def test_a_quantised_model_is_measured_as_it_is(bundle, tmp_path, precision):
    quantised = tmp_path / "quantised"
    convert(hf_path=bundle, mlx_path=quantised, quantize=True, q_group_size=32)
    with pytest.raises(RedrafterError, match="quantised already"):
        load_at(str(quantised), precision)
    load_at(str(quantised), "stored")


@pytest.mark.parametrize("precision", ["stored", "float32", "8bit"])
def test_what_is_known_of_a_model_is_known_at_every_precision(bundle, tmp_path, precision):
    """How long its texts may be, what it is called, and what was recorded of its drafter."""
    own, others = recorded_of(REAL, 3), recorded_of(KNOWN, 2)
    path = tmp_path / "tiny"
    shutil.copytree(bundle, path)
    save_recorded(path / "drafter", own)
    model, tokenizer = load_at(str(path), precision)
    assert (model.name, model.context_limit, model.recorded) == ("tiny", 400, own)
    assert model.config == load(path)[0].config
    other = shutil.copytree(path / "drafter", tmp_path / "other")
    save_recorded(other, others)
    second = other_drafter(model, tokenizer, str(other), precision)
    assert (second.context_limit, second.recorded) == (400, others)
