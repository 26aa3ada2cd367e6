"""Prefill, evaluations, memory, records, planned shapes and refusals of the loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import islice, pairwise
from typing import Any

import mlx.core as mx
import pytest
from decoding_cases import (
    ARCHITECTURE,
    KIND,
    KINDS,
    LENGTH,
    PROMPT,
    SAMPLED,
    TEXT,
    Evaluations,
    ScriptedPlanner,
    assert_consistent,
    assert_planned_as_plain,
    config_of,
    drafting_model,
    plain,
    plain_model,
)
from mlx_lm.generate import generate_step

import models
from mlx_redrafter.cache import attention as cache_module
from mlx_redrafter.cache.attention import TreeKVCache
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine import step_timer
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.sequence import Sequence as TextSequence
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step import DecodedToken, PendingStep, StepRecord
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import HostTree

# Prefill


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 23])
@pytest.mark.parametrize("chunk", [1, 8, 2048])
def test_the_prompt_is_cut_as_mlx_lm_does(
    length: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last token, in chunks; the last one is the first step's."""
    model = models.shared(ARCHITECTURE)
    prompt = models.prompt_of(length)
    target = SpeculativeModel(model)
    original, sizes = type(model).__call__, []

    def spy(self: Any, tokens: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        sizes.append(tokens.shape[1])
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(model), "__call__", spy)
    next(decode(target, prompt, DecodingConfig(1, prefill_step_size=chunk)))
    ours = list(sizes)
    sizes.clear()
    next(generate_step(mx.array(prompt), model, max_tokens=1, prefill_step_size=chunk))
    assert ours == sizes[: len(ours)]
    assert sum(ours) == length
    assert ours[-1] == 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 2048])
def test_chunks_do_not_change_the_text(chunk: int) -> None:
    assert plain(PROMPT, 10, prefill_step_size=chunk) == TEXT[:10]


def test_progress() -> None:
    told: list[tuple[int, int]] = []
    config = config_of(1, prefill_step_size=4)
    list(decode(plain_model(), PROMPT, config, progress=lambda *done: told.append(done)))
    assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]


VOCABULARY = 20_000


def wide_model() -> SpeculativeModel:
    return SpeculativeModel(models.build("llama", vocab_size=VOCABULARY))


def test_prefill_computes_no_logits() -> None:
    """Logits of a chunk would take ten times the memory that may be used."""
    model = wide_model()
    prompt = models.prompt_of(514)
    logits_bytes = 512 * VOCABULARY * 4

    def peak(work: Callable[[], None]) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        work()
        return mx.get_peak_memory() - before

    assert peak(lambda: mx.eval(model.target.teach(mx.array([prompt[:512]]))[0])) > logits_bytes
    assert (
        peak(lambda: list(decode(model, prompt, DecodingConfig(1, prefill_step_size=512))))
        < logits_bytes / 4
    )


# Evaluations and memory


@KIND
@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
def test_one_evaluation_a_step(
    kind: str, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecodingConfig(LENGTH, sampling, beam=BeamShape(3, 3))
    text = plain(PROMPT, LENGTH + 8, sampling)
    model = drafting_model(text=text) if kind == "drafted" else KINDS[kind]()
    if kind in ("beam search", "memory"):
        model.source(config.beam, sampling)  # its time is taken beforehand
    cache, stats = model.make_cache(), AcceptanceStats()
    list(decode(model, PROMPT[:-1], DecodingConfig(1), cache=cache))
    counted = Evaluations(monkeypatch)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats)
    assert [decoded.token for decoded in stream] == text[:LENGTH]
    # One for the prompt's last token, of which the first token of text comes (and one for what a
    # head remembers of it), then one a step, and one at the end for what the cache keeps.
    first = 1 + (kind == "memory")
    assert len(counted.launched) == first + stats.steps + 1
    assert counted.waits == 0
    # What is read back was evaluated with its step; reading evaluates nothing more.
    assert counted.read <= set().union(*counted.launched)
    assert stats.tokens == LENGTH - 1


def test_memory_comes_back_after_a_text() -> None:
    """Nothing of size nodes x vocabulary outlives its step, and nothing but the cache the text."""
    drafter = models.build_drafter(vocab_size=VOCABULARY)
    model = SpeculativeModel(wide_model().target, drafter)
    config = DecodingConfig(12, SamplingConfig(1.0, top_k=40, seed=1), beam=BeamShape(4, 5))
    cache = model.make_cache()
    list(decode(model, PROMPT, config, cache=cache))
    cache.reset()
    mx.synchronize()
    before = mx.get_active_memory()
    held = list(decode(model, PROMPT, config, cache=cache))
    mx.synchronize()
    left = mx.get_active_memory() - before - cache.nbytes
    assert len(held) == 12
    assert left < 20 * VOCABULARY


def test_memory_is_level_while_a_text_is_decoded() -> None:
    drafter = models.build_drafter(vocab_size=VOCABULARY)
    model = SpeculativeModel(wide_model().target, drafter)
    config = DecodingConfig(40, SamplingConfig(1.0, seed=1), beam=BeamShape(4, 5))
    cache, levels, kept = model.make_cache(), [], []
    for decoded in decode(model, PROMPT, config, cache=cache):
        mx.synchronize()
        levels.append(mx.get_active_memory())
        kept.append(decoded)
    # A step's logits are 21 rows; the noise comes in blocks, of which two may be needed at once.
    row = VOCABULARY * 4
    early, late = max(levels[5:20]), max(levels[-15:])
    assert late - early < 16 * row


def test_records_hold_plain_numbers() -> None:
    for make in KINDS.values():
        for decoded in decode(make(), PROMPT, config_of()):
            record = decoded.step
            if record is None:
                continue
            assert {field.name for field in fields(StepRecord)} == {
                "tree",
                "choices",
                "path",
                "copied",
                "cut",
                "watched",
            }
            assert {type(number) for number in (*record.choices, *record.path)} == {int}
            tree = record.tree
            assert type(tree) is HostTree
            assert {type(number) for number in (*tree.tokens, *tree.parents)} == {int}
            assert {type(number) for number in tree.log_probs} == {float}


@pytest.mark.parametrize("kind", ["plain", "drafted"])
def test_caches_grow_in_blocks_and_windows_stay_bounded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, margin, tree = 32, 24, 13  # no tree of the scripted source has more rows
    monkeypatch.setattr(TreeKVCache, "step", block)
    monkeypatch.setattr(cache_module, "REWIND_MARGIN", margin)
    prompt = models.prompt_of(30)
    text = plain(prompt, 130, SamplingConfig())
    model = plain_model() if kind == "plain" else drafting_model(prompt, text, depth=6)
    cache = model.make_cache()
    sliding, full = cache.layers
    sizes: list[tuple[int, int]] = []
    for _ in decode(model, prompt, DecodingConfig(120), cache=cache):
        assert sliding.keys is not None
        assert full.keys is not None
        sizes.append((sliding.keys.shape[2], full.keys.shape[2]))
    grown = [after - before for (_, before), (_, after) in pairwise(sizes) if after != before]
    # A block behind what is used, which is up to a tree's rows less than the old buffer.
    assert all(block - tree <= size <= block for size in grown)
    assert 3 <= len(grown) <= 120 // (block - tree)
    assert len(prompt) + 120 <= sizes[-1][1] <= len(prompt) + 120 + 2 * block
    assert max(size for size, _ in sizes) <= models.WINDOW + margin + block


# Records, counts, refusals


@KIND
def test_records_add_up(kind: str) -> None:
    stats = AcceptanceStats()
    decoded = list(decode(KINDS[kind](), PROMPT, config_of(), stats=stats))
    assert decoded[0].step is None
    assert not decoded[0].from_draft
    before = decoded[0].token
    steps: list[list[DecodedToken]] = []
    for token in decoded[1:]:
        if not steps or steps[-1][0].step is not token.step:
            steps.append([])
        steps[-1].append(token)
    assert len(steps) == stats.steps
    for tokens in steps:
        record = tokens[0].step
        assert record is not None
        assert record.tree.tokens[0] == before
        assert len(record.choices) == len(record.tree.tokens) == 1 + record.drafted
        written = [record.choices[node] for node in record.path]
        assert [token.token for token in tokens] == written[: len(tokens)]
        flags = [True] * record.accepted + [False]
        assert [token.from_draft for token in tokens] == flags[: len(tokens)]
        before = tokens[-1].token
    assert stats.drafted == sum(tokens[0].step.drafted for tokens in steps if tokens[0].step)
    assert stats.accepted == sum(token.from_draft for token in decoded)
    assert stats.tokens == len(decoded) - 1
    assert sum(stats.histogram) == stats.steps
    assert sum(n * count for n, count in enumerate(stats.histogram)) == stats.accepted
    if kind == "drafted":
        assert stats.accepted >= 4 * (stats.steps - 1)
    if kind == "plain":
        assert stats.tokens_per_step == 1.0


def test_the_first_token_does_not_wait_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = Evaluations(monkeypatch)
    tokens = decode(drafting_model(), PROMPT, config_of())
    next(tokens)
    assert len(evaluations.launched) == 1
    next(tokens)  # from here on the step behind is under way while a step's tokens are read
    assert len(evaluations.launched) == 3
    tokens.close()


def test_stats_go_on_from_text_to_text() -> None:
    stats = AcceptanceStats()
    list(decode(plain_model(), PROMPT, config_of(5), stats=stats))
    list(decode(plain_model(), PROMPT, config_of(4), stats=stats))
    assert (stats.steps, stats.tokens) == (4 + 3, 4 + 3)


def test_draft_false_does_not_draft() -> None:
    stats = AcceptanceStats()
    decoded = list(decode(drafting_model(), PROMPT, config_of(draft=False), stats=stats))
    assert [token.token for token in decoded] == TEXT[:LENGTH]
    assert (stats.drafted, stats.accepted, stats.draft_seconds) == (0, 0, 0.0)
    assert not any(token.from_draft for token in decoded)


class Switching(ScriptedPlanner):
    """A planner that changes its mind at every step that drafts: plain, and several shapes."""

    # After a plain step a shape is looked at before that step is told of.
    shapes = (
        None,
        BeamShape(2, 3),
        None,
        None,
        BeamShape(4, 1),
        BeamShape(1, 5),
        BeamShape(1, 5),
        BeamShape(5, 4, 6),
    )

    def __init__(self) -> None:
        self.observed: list[tuple[BeamShape | None, int]] = []
        self.begun: list[float] = []
        self.seconds: list[float] = []

    def begin(self, cache: PromptCache, temperature: float, *, among: bool = False) -> None:
        self.begun.append(temperature)

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self.shapes[len(self.observed) % len(self.shapes)])

    def observe(self, step: ObservedStep) -> None:
        self.seconds.append(step.seconds)
        (record,) = step.records
        self.observed.append((step.shape, record.drafted))


def read_by_the_second(monkeypatch: pytest.MonkeyPatch, first: float = 1.0) -> None:
    """Each step is read in a second, that of the prompt's last token in its own time."""
    now = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    read = TextSequence.read

    def slowly(loop: TextSequence, pending: PendingStep) -> StepRecord:
        now[0] += first if now[0] == 0 else 1.0
        return read(loop, pending)

    monkeypatch.setattr(TextSequence, "read", slowly)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_tokens", [1, 2, 17, 30])
def test_shapes_may_change_from_step_to_step(
    sampling: SamplingConfig, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Switching()
    read_by_the_second(monkeypatch)
    stats = assert_planned_as_plain(planner, max_tokens, sampling)
    assert len(planner.observed) == stats.steps
    if max_tokens == 30:
        assert {shape for shape, _ in planner.observed} == set(planner.shapes)
    for shape, drafted in planner.observed:
        assert drafted == (shape.nodes if shape else 0)
    assert stats.tokens == max_tokens - 1
    assert planner.begun == [sampling.temperature]
    assert planner.seconds == [1.0] * stats.steps, "each step's time is told, and told once"


class Patient(ScriptedPlanner):
    """A planner that drafts every tenth step, and need not hear of those between one by one."""

    def __init__(self) -> None:
        self.steps = self.asked = 0
        self.reports: list[ObservedStep] = []

    @property
    def plan(self) -> StepPlan:
        self.asked += 1
        drafts = self.steps % 10 == 9
        return StepPlan(BeamShape(2, 3) if drafts else None, patience=9 - self.steps % 10)

    def observe(self, step: ObservedStep) -> None:
        self.steps += step.repeats
        self.reports.append(step)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
def test_a_planner_hears_of_every_step_once_though_not_at_once(sampling: SamplingConfig) -> None:
    planner = Patient()
    stats = assert_planned_as_plain(planner, 60, sampling)
    assert sum(step.shape is not None for step in planner.reports) >= 4, "none was put off"
    assert stats.steps - 9 <= planner.steps <= stats.steps, "but for what was held at the end"
    assert len(planner.reports) < stats.steps / 2
    assert planner.asked <= 3 * len(planner.reports), "it is not asked at every step"
    contexts = [step.context for step in planner.reports]
    assert contexts == sorted(contexts)


class Early(Switching):
    """A planner whose drafts are made with the step before, in rows and between plain steps."""

    shapes = (None, BeamShape(2, 3), BeamShape(1, 4), None, None, None)

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[ObservedStep] = []

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self.shapes[len(self.steps) % len(self.shapes)], early=True)

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return 0 if context % 4 < 2 else len(tree.tokens) - 1  # some drafts are of no use

    def observe(self, step: ObservedStep) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
def test_a_planner_hears_in_which_step_each_draft_was_made(sampling: SamplingConfig) -> None:
    planner = Early()
    assert_planned_as_plain(planner, 60, sampling)
    seen = Counter()
    for step, after in pairwise(planner.steps):
        assert after.drafted_before == step.next_shape
        assert not after.watched_before
        assert step.overlapped == after.early
        overlapped = after.next_shape if after.early else None
        assert step.overlapped_draft == overlapped
        if step.drafted_before:
            seen["verified" if step.shape else "of no use"] += 1
            assert step.shape in (step.drafted_before, None)
        if step.shape and not step.records[0].cut:
            assert step.nodes == step.shape.nodes
        seen["overlapped"] += overlapped is not None
    assert min(seen[kind] for kind in ("verified", "of no use", "overlapped")) >= 2, seen


def test_a_planner_is_left_alone_where_nothing_is_drafted() -> None:
    class Unwanted(Switching):
        @property
        def plan(self) -> StepPlan:
            raise AssertionError("nothing is drafted")

        def observe(self, *_: Any) -> None:
            raise AssertionError("nothing is drafted")

    config = DecodingConfig(6, draft=False)
    stream = decode(KINDS["beam search"](), PROMPT, config, planner=Unwanted())
    assert [decoded.token for decoded in stream] == plain(PROMPT, 6, config.sampling)


def test_a_planner_may_stop_drafting_amid_accepted_runs() -> None:
    class Alternating(Switching):
        shapes = (BeamShape(), BeamShape(), None, None, BeamShape(), None)

    source = models.ScriptedSource(PROMPT + TEXT, full=True)
    model = SpeculativeModel(models.shared(ARCHITECTURE), source)
    cache, stats = model.make_cache(), AcceptanceStats()
    config = DecodingConfig(LENGTH, SAMPLED)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats, planner=Alternating())
    assert [decoded.token for decoded in stream] == TEXT[:LENGTH]
    assert stats.accepted >= 8
    assert_consistent(cache, PROMPT + TEXT[: LENGTH - 1])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "prompt is empty"), ([1, models.VOCAB], "outside the vocabulary"), ([-1], "outside")],
)
def test_bad_prompts_are_refused_at_once(prompt: list[int], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        decode(plain_model(), prompt)


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", 0), ("max_tokens", -2), ("prefill_step_size", 0)]
)
def test_bad_limits_are_refused(name: str, value: int) -> None:
    with pytest.raises(RedrafterError, match=f"{name} is {value}"):
        DecodingConfig(**{name: value})


def test_what_does_not_fit_the_model_is_refused_at_once() -> None:
    """Before anything is computed: the call raises, not the first token."""
    with pytest.raises(RedrafterError, match="top_k"):
        decode(plain_model(), PROMPT, DecodingConfig(sampling=SamplingConfig(1.0, top_k=1000)))
    with pytest.raises(RedrafterError, match="beam width"):
        decode(KINDS["beam search"](), PROMPT, DecodingConfig(beam=BeamShape(width=100)))


@pytest.mark.parametrize(("what", "sizes"), [("hidden size", (16, 64)), ("vocabulary", (32, 60))])
def test_a_drafter_of_another_size_is_refused(what: str, sizes: tuple[int, int]) -> None:
    drafter = models.build_drafter(hidden_size=sizes[0], vocab_size=sizes[1])
    with pytest.raises(RedrafterError, match=what):
        SpeculativeModel(models.shared(ARCHITECTURE), drafter)


def test_decode_yields_lazily() -> None:
    stream: Iterator[DecodedToken] = decode(plain_model(), PROMPT, config_of(-1))
    assert [decoded.token for decoded in islice(stream, 3)] == TEXT[:3]


def test_the_prompts_time_is_not_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain steps start before the one ahead of them is read, the prompt's own forward too."""
    read_by_the_second(monkeypatch, first=50.0)

    class Plain(Switching):
        shapes = (None,)
        overlaps: list[tuple[bool, bool]] = []  # noqa: RUF012

        def observe(self, step: ObservedStep) -> None:
            self.seconds.append(step.seconds)
            self.overlaps.append((step.early, step.overlapped))

    planner = Plain()
    list(decode(KINDS["beam search"](), PROMPT, DecodingConfig(6), planner=planner))
    assert planner.seconds == [1.0] * 5
    assert planner.overlaps == [*[(True, True)] * 4, (True, False)]


def test_plain_steps_between_drafts_are_told_as_they_overlap() -> None:
    class Switched(Switching):
        shapes = (BeamShape(1, 2), None, None, None)
        overlaps: list[tuple[bool, bool, bool]] = []  # noqa: RUF012

        def observe(self, step: ObservedStep) -> None:
            super().observe(step)
            self.overlaps.append((step.shape is None, step.early, step.overlapped))

    planner = Switched()
    list(decode(KINDS["beam search"](), PROMPT, DecodingConfig(40), planner=planner))
    assert (True, False, True) in planner.overlaps
    assert (True, True, False) in planner.overlaps
    for (_, _, overlapped), (is_plain, early, _) in pairwise(planner.overlaps):
        assert early == overlapped
        assert is_plain or not early


def test_steps_that_have_to_be_plain_are_called_so() -> None:
    """Where keys and values are about to be quantised a step checks one token at a time."""
    model = SpeculativeModel(models.build("llama", head_dim=32), models.build_drafter())

    class Eager(Switching):
        shapes = (BeamShape(1, 5),)

    planner = Eager()
    options = CacheOptions(kv_bits=4, kv_group_size=32, quantized_kv_start=len(PROMPT) + 6)
    config = DecodingConfig(24, cache_options=options)
    list(decode(model, PROMPT, config, planner=planner))
    assert all(drafted == (shape.nodes if shape else 0) for shape, drafted in planner.observed)
    assert {shape for shape, _ in planner.observed} == {None, BeamShape(1, 5)}


def test_a_search_is_timed_when_that_is_first_asked_for() -> None:
    model = KINDS["beam search"]()
    shape = BeamShape(2, 2)
    untimed = model.source(shape, SamplingConfig(), timed=False)
    assert untimed is not None
    assert untimed.seconds == 0
    timed = model.source(shape, SamplingConfig())
    assert timed is untimed
    assert timed.seconds > 0


def test_searches_of_old_settings_are_dropped() -> None:
    model, shape = KINDS["beam search"](), BeamShape(1, 1)
    first = model.source(shape, SamplingConfig(temperature=0.5), timed=False)
    other = SamplingConfig(temperature=0.5, seed=3, repetition_penalty=1.1)
    assert model.source(shape, other, timed=False) is first
    for step in range(200):
        model.source(shape, SamplingConfig(temperature=1 + step), timed=False)
        assert model.source(shape, SamplingConfig(temperature=0.5), timed=False) is first
    assert len(model._searches) <= 64


def test_plain_steps_leave_a_core_and_what_is_around_them_has_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = KINDS["beam search"]()
    asked: list[int] = []
    monkeypatch.setattr(model.target, "take_cores", asked.append)
    list(decode(model, PROMPT, DecodingConfig(4, draft=False)))
    assert asked[0] == len(PROMPT)
    assert set(asked[1:-1]) == {1}
    assert asked[-1] > 1, "what comes after the text has all of them"
