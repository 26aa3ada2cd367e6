"""Prompts decoded together: each text is the one it has alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import mlx.core as mx
import pytest
from decoding_cases import Evaluations, ScriptedPlanner, path_along

import models
from mlx_redrafter.cache.forward_context import BUFFER_STEP
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.next_draft import NextDraft
from mlx_redrafter.drafting.recorded import RecordedDraft
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine import sequence as sequences
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.loop import DecodingLoop
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.sequence import Sequence as TextSequence
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.step import DecodedToken, PendingStep
from mlx_redrafter.engine.watch import Watch, WatchedDraft
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree, HostTree
from models import prompt_of

PROMPTS = [prompt_of(length, seed=length) for length in (3, 21, 9, 1, 14)]
GREEDY = DecodingConfig(max_tokens=14)
SAMPLED = DecodingConfig(
    max_tokens=14, sampling=SamplingConfig(temperature=0.9, top_p=0.9, top_k=20, seed=5)
)
PENALISED = DecodingConfig(
    max_tokens=14,
    sampling=SamplingConfig(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.4, seed=2),
)
KINDS = {"greedy": GREEDY, "sampled": SAMPLED, "penalised": PENALISED}


class Continuations:
    """A draft source that knows all texts: what follows the root in any of them, and wrong tokens.

    Args:
        texts: Prompts with their continuations.
    """

    seconds = 0.0
    max_depth = 3
    nodes = 24

    def __init__(self, texts: Sequence[Sequence[int]]):
        self._texts = [list(text) for text in texts]

    def __call__(self, state: DraftInput) -> DraftTree:
        root = int(state.root.item())
        tokens, parents = [root, (root + 1) % models.VOCAB], [-1, 0]
        for text in self._texts:
            for at in (place for place, token in enumerate(text) if token == root):
                self._add(tokens, parents, text[at + 1 : at + 1 + self.max_depth])
        while len(tokens) <= self.nodes:
            tokens.append(len(tokens) % models.VOCAB)
            parents.append(0)
        return DraftTree.from_parents(tokens[: self.nodes], parents[: self.nodes])

    @staticmethod
    def _add(tokens: list[int], parents: list[int], path: Sequence[int]) -> None:
        at = 0
        for token in path:
            same = [n for n in range(len(tokens)) if (parents[n], tokens[n]) == (at, token)]
            if not same:
                tokens.append(token)
                parents.append(at)
                same = [len(tokens) - 1]
            at = same[0]


@cache
def target(name: str) -> Target:
    return Target(models.shared(name))


def alone(model: SpeculativeModel, prompt: Sequence[int], config: DecodingConfig) -> list[int]:
    return [one.token for one in decode(model, prompt, replace(config, draft=False))]


def collect(decoder: BatchDecoder) -> dict[int, list[DecodedToken]]:
    texts: dict[int, list[DecodedToken]] = {}
    for index, token in decoder:
        texts.setdefault(index, []).append(token)
    return texts


def ids(texts: dict[int, list[DecodedToken]]) -> list[list[int]]:
    return [[one.token for one in texts[index]] for index in sorted(texts)]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_text_is_the_one_it_has_alone(kind: str, size: int) -> None:
    """Plain and drafted, whatever the batch; the hidden truth is accepted."""
    config = KINDS[kind]
    model = SpeculativeModel(target("llama:sliding"))
    expected = [alone(model, prompt, config) for prompt in PROMPTS]
    assert ids(collect(BatchDecoder(model, PROMPTS, config, batch_size=size))) == expected
    texts = [prompt + text for prompt, text in zip(PROMPTS, expected, strict=True)]
    drafting = SpeculativeModel(model.target, Continuations(texts))
    decoder = BatchDecoder(drafting, PROMPTS, config, batch_size=size)
    made = collect(decoder)
    assert ids(made) == expected
    assert all(text[-1].finish_reason == "length" for text in made.values())
    for stats, text in zip(decoder.stats, made.values(), strict=True):
        assert stats.accepted > 3
        assert sum(one.from_draft for one in text) == stats.accepted
        assert stats.steps < config.max_tokens - 1


HEADS = {
    "lookback": models.build_drafter(seed=1, lookback=4),
    "memory": models.memory_drafter(seed=1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_the_drafters_beam_search_together(name: str, head: str, kind: str) -> None:
    """Drafts are those of a text alone, so statistics are equal as well."""
    config = replace(KINDS[kind], beam=BeamShape(3, 3, 6))
    of = target(name)
    model = SpeculativeModel(of, HEADS[head])
    decoder = BatchDecoder(model, PROMPTS, config, batch_size=3)
    made = collect(decoder)
    for index, prompt in enumerate(PROMPTS):
        expected = list(decode(model, prompt, config))
        assert [one.token for one in made[index]] == [one.token for one in expected]
        trees = [one.step.tree.tokens for one in made[index] if one.step is not None]
        assert trees == [one.step.tree.tokens for one in expected if one.step is not None]


@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("kind", ["sampler", "logits_processors"])
def test_a_callers_function_hears_of_its_own_text_alone(kind: str, name: str) -> None:
    """One that counts gives the text that it gives alone; rows that are filled up are no text."""

    def options() -> dict[str, Any]:
        asked = iter(range(1000))

        def sampler(_logprobs: mx.array) -> mx.array:
            return mx.array([next(asked) % 3])  # 0 is what rows are filled up with

        def processor(_tokens: mx.array, logits: mx.array) -> mx.array:
            return logits + 99.0 * (mx.arange(models.VOCAB) == next(asked) % 3)

        return {"sampler": sampler} if kind == "sampler" else {"logits_processors": (processor,)}

    def config() -> DecodingConfig:
        sampling = SamplingConfig(logprobs=2, temperature=1e-3, seed=1)
        return replace(GREEDY, draft=False, sampling=sampling, **options())

    model = SpeculativeModel(models.mamba() if name == "mamba" else models.shared(name))
    greedy = alone(model, PROMPTS[0], GREEDY)
    expected = alone(model, PROMPTS[1], config())
    assert len(set(expected)) == 3
    drafting = SpeculativeModel(model.target, Continuations([PROMPTS[0] + greedy]))
    made = collect(BatchDecoder(drafting, PROMPTS[:2], [GREEDY, config()]))
    assert ids(made) == [greedy, expected]
    assert any(one.from_draft for one in made[0])


def test_ends_of_texts_and_limits() -> None:
    model = SpeculativeModel(target("llama"))
    free = [alone(model, prompt, GREEDY) for prompt in PROMPTS]
    config = replace(GREEDY, eos_token_ids=frozenset([free[0][4], free[1][0]]))
    limits = [14, 14, 1, 3, 6]
    texts = [prompt + text for prompt, text in zip(PROMPTS, free, strict=True)]
    drafting = SpeculativeModel(model.target, Continuations(texts))
    decoder = BatchDecoder(drafting, PROMPTS, config, max_tokens=limits, batch_size=2)
    made = collect(decoder)
    for index, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        expected = list(decode(model, prompt, replace(config, max_tokens=limit)))
        assert [one.token for one in made[index]] == [one.token for one in expected]
        reasons = [one.finish_reason for one in made[index]]
        assert reasons == [one.finish_reason for one in expected]


def test_a_text_can_be_stopped_and_others_go_on() -> None:
    model = SpeculativeModel(target("llama"))
    expected = [alone(model, prompt, GREEDY) for prompt in PROMPTS]
    decoder = BatchDecoder(model, PROMPTS, GREEDY, batch_size=3)
    made: dict[int, list[int]] = {}
    for index, one in decoder:
        made.setdefault(index, []).append(one.token)
        if index == 1 and len(made[1]) == 5:
            decoder.stop(1)
            decoder.stop(4)  # which has not begun
    assert made[1] == expected[1][:5]
    assert [made[index] for index in (0, 2, 3)] == [expected[index] for index in (0, 2, 3)]
    assert 4 not in made
    assert decoder.prompt_seconds[4] == 0


@pytest.mark.parametrize("name", ["llama", "llama:sliding"])
def test_texts_that_outgrow_their_buffers(name: str) -> None:
    """One crosses a block of columns while another has hardly begun; then a third joins."""
    model = SpeculativeModel(target(name))
    prompts = [prompt_of(length, seed=length) for length in (BUFFER_STEP - 4, 2, 7)]
    config = replace(GREEDY, max_tokens=16)
    expected = [alone(model, prompt, config) for prompt in prompts]
    texts = [prompt + text for prompt, text in zip(prompts, expected, strict=True)]
    for source in (None, Continuations(texts)):
        drafting = SpeculativeModel(model.target, source)
        limits = [16, 9, 16]
        decoder = BatchDecoder(drafting, prompts, config, max_tokens=limits, batch_size=2)
        made = ids(collect(decoder))
        assert made == [text[:limit] for text, limit in zip(expected, limits, strict=True)]


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_one_evaluation_a_step_for_all_texts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(KINDS[kind], beam=BeamShape(3, 3))
    model = SpeculativeModel(target("llama"), models.build_drafter(seed=1))
    model.source(config.beam, config.sampling)  # its time is taken beforehand
    decoder = BatchDecoder(model, PROMPTS[:3], config)
    counted = Evaluations(monkeypatch)
    collect(decoder)
    steps = max(stats.steps for stats in decoder.stats)
    assert steps > 2
    # A prompt's last token each, then a step of all; and what is left in the cache where one ends.
    assert 3 + steps <= len(counted.launched) <= 3 + steps + 3
    assert counted.waits == 3  # prefills
    assert counted.read <= set().union(*counted.launched)


def test_a_steps_time_is_not_other_prompts_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third prompt joins while the others are under way, and is prefilled between two steps."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    prefill, launch = TextSequence.prefill, DecodingLoop._launch

    def slowly(*arguments: Any) -> Iterator[tuple[int, int]]:
        now[0] += 100.0
        yield from prefill(*arguments)

    def in_a_second(*arguments: Any, **options: Any) -> list[PendingStep]:
        pendings = launch(*arguments, **options)
        now[0] += 1.0
        return pendings

    monkeypatch.setattr(TextSequence, "prefill", slowly)
    monkeypatch.setattr(DecodingLoop, "_launch", in_a_second)
    limits = [12, 4, 12]
    model = SpeculativeModel(target("llama"))
    decoder = BatchDecoder(model, PROMPTS[:3], GREEDY, max_tokens=limits, batch_size=2)
    collect(decoder)
    # A step that overlaps with the one before it is launched in that one's time.
    for stats in decoder.stats:
        assert stats.steps <= stats.seconds <= stats.steps + 1


def test_a_batch_may_be_abandoned() -> None:
    """Between any two tokens; the model is as it was."""
    model = SpeculativeModel(target("llama:sliding"), models.build_drafter(seed=1))
    expected = alone(model, PROMPTS[1], GREEDY)
    for count in (1, 4, 9):
        stream = iter(BatchDecoder(model, PROMPTS, GREEDY, batch_size=3))
        for _ in range(count):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert [one.token for one in decode(model, PROMPTS[1], GREEDY)] == expected


class Fixed(ScriptedPlanner):
    """A planner that goes round its shapes and notes what it was asked and told."""

    def __init__(self, costs: CostModel, shapes: Sequence[BeamShape | None]):
        self.costs = costs
        self._shapes = shapes
        self.sequences = 0
        self.texts: list[int] = []
        self.told: list[tuple[BeamShape | None, list[int], int]] = []

    def for_batch(self, sequences: int) -> Fixed:
        self.sequences = sequences
        return self

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self._shapes[len(self.told)])

    def observe(self, step: ObservedStep) -> None:
        assert step.seconds > 0
        self.texts.append(self.sequences)
        self.told.append((step.shape, [record.drafted for record in step.records], step.context))


COSTS = CostModel((1, 8, 64), (64,), ((1.0, 1.7, 7.3),), {1: 0.05, 4: 0.06, 8: 0.1}, (0.9,))


def test_a_planner_shapes_the_steps_of_all_texts() -> None:
    of = target("llama")
    model = SpeculativeModel(of, models.build_drafter(seed=1))
    shapes = [BeamShape(2, 2), None, BeamShape(1, 3)] * 10
    planner = Fixed(COSTS, shapes)
    decoder = BatchDecoder(model, PROMPTS[:2], GREEDY, max_tokens=[14, 4], planner=planner)
    made = collect(decoder)
    texts = [alone(model, prompt, GREEDY) for prompt in PROMPTS[:2]]
    assert ids(made) == [texts[0], texts[1][:4]]
    assert len(planner.told) == max(stats.steps for stats in decoder.stats)
    assert planner.told[0] == (shapes[0], [4, 4], 21)
    assert {shape for shape, _, _ in planner.told} == set(shapes)
    assert all(set(drafted) == {shape.nodes if shape else 0} for shape, drafted, _ in planner.told)
    assert planner.texts[:2] == [2, 2]
    assert planner.texts[-1] == 1  # the shorter text has left
    assert [len(drafted) for _, drafted, _ in planner.told] == planner.texts
    silent = BatchDecoder(model, PROMPTS[:2], replace(GREEDY, draft=False), planner=planner)
    assert ids(collect(silent)) == texts
    assert len(planner.texts) == len(planner.told)


class Early(Fixed):
    """A planner whose drafts are made with the step before."""

    plan = StepPlan(BeamShape(1, 4), early=True, watched=True)

    def __init__(self, costs: CostModel):
        super().__init__(costs, ())
        self.cuts: list[list[bool]] = []
        self.watched: list[WatchedDraft] = []

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return len(tree.tokens) - 1

    def observe(self, step: ObservedStep) -> None:
        super().observe(step)
        self.cuts.append([record.cut for record in step.records])
        self.watched += step.watched


def test_drafts_made_in_advance_are_each_cut_where_their_own_text_ends() -> None:
    model = SpeculativeModel(target("llama"), models.build_drafter(seed=1))
    planner = Early(COSTS)
    decoder = BatchDecoder(model, PROMPTS[:2], GREEDY, max_tokens=[14, 9], planner=planner)
    texts = [alone(model, prompt, GREEDY) for prompt in PROMPTS[:2]]
    assert ids(collect(decoder)) == [texts[0], texts[1][:9]]
    together = [
        (cut, drafted)
        for cut, (_, drafted, _) in zip(planner.cuts, planner.told, strict=True)
        if len(cut) == 2
    ]
    assert [False, False] in [cut for cut, _ in together]
    ending = [drafted for cut, drafted in together if cut == [False, True]]
    assert ending, "the shorter text's last drafts"
    assert all(whole == 4 for whole, _ in ending), "the other text goes on"


class Noting(Watch):
    """Notes what it is told, and what it tells."""

    made: ClassVar[list[Noting]] = []

    def __init__(self) -> None:
        super().__init__()
        self.said: list[int] = []
        self.trees: list[tuple[int, HostTree]] = []
        self.told: list[WatchedDraft] = []
        self.made.append(self)

    def begin(self, draft: NextDraft) -> None:
        assert draft.tree is not None
        self.trees.append((len(self.said), draft.tree.read()))
        super().begin(draft)

    def follow(self, tokens: Sequence[int]) -> None:
        self.said += tokens
        super().follow(tokens)

    def take(self) -> list[WatchedDraft]:
        over = super().take()
        self.told += over
        return over


def test_each_text_of_a_batch_is_compared_with_its_own_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Noting, "made", [])
    monkeypatch.setattr(sequences, "Watch", Noting)
    model = SpeculativeModel(target("llama"), models.build_drafter(seed=1))
    planner = Early(COSTS)
    decoder = BatchDecoder(model, PROMPTS[:2], GREEDY, max_tokens=[30, 30], planner=planner)
    longer = replace(GREEDY, max_tokens=30)
    assert ids(collect(decoder)) == [alone(model, prompt, longer) for prompt in PROMPTS[:2]]
    told = 0
    for watch in Noting.made:
        for (at, tree), watched in zip(watch.trees, watch.told, strict=False):
            assert tree.tokens[0] == watch.said[at - 1]
            assert watched.draft == RecordedDraft.of(tree, path_along(tree, watch.said[at:]))
            assert watched.verified
            told += 1
    assert told == len(planner.watched) >= 6


def test_costs_of_a_batch() -> None:
    pair = COSTS.for_batch(2)
    assert COSTS.for_batch(1) == COSTS
    assert pair.verify_seconds(4, 64) == pytest.approx(COSTS.verify_seconds(8, 64), rel=0.05)
    assert pair.step_seconds(None, 64) == COSTS.verify_seconds(2, 64)
    assert pair.draft_seconds(BeamShape(4, 3)) == pytest.approx(3 * COSTS.draft[8])
    assert COSTS.for_batch(64).verify_seconds(64, 64) == pytest.approx(64 * 7.3)


def test_gains_shrink_as_the_batch_grows() -> None:
    tree_costs = replace(COSTS, plain=(1.0,))
    single = Planner(tree_costs)
    gains = []
    for texts in (1, 4, 16):
        planner = single.for_batch(texts)
        for _ in range(2):
            single._memory.add(_sure_tree(), BeamShape(1, 7))
        plain, *drafted = planner.forecasts(0)
        best = max(one.tokens_per_second for one in drafted)
        gains.append(best / plain.tokens_per_second)
    assert gains[0] > gains[1] > gains[2]
    assert gains[2] < 0.6 * gains[0]


def _sure_tree() -> HostTree:
    chain = tuple(range(8))
    return HostTree(chain, (-1, *range(7)), tuple(-0.04 * depth for depth in range(8)))


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[1], []], {}, r"prompts\[1\] is empty"),
        ([[1], [2, 64]], {}, r"prompts\[1\] holds token ids outside the vocabulary of 64"),
        (["ab"], {}, r"prompts\[0\] has to be a list of token ids here"),
        ([1, 2], {}, r"prompts\[0\] has to be a list of token ids here"),
        (5, {}, "prompts has to be a list of lists"),
        ([[1]], {"config": 5}, "config has to be a DecodingConfig"),
        ([[1]], {"config": [5]}, "config has to be a DecodingConfig"),
        ([[1], [2]], {"max_tokens": [3]}, "1 entries for 2 prompts"),
        ([[1]], {"batch_size": 0}, "batch_size is 0"),
        ([[1]], {"max_tokens": [0]}, "max_tokens is 0"),
        ([[1]], {"max_tokens": 5}, "max_tokens has to be a list of numbers"),
    ],
)
def test_bad_arguments(prompts: Any, options: dict[str, Any], words: str) -> None:
    model = SpeculativeModel(target("llama"))
    with pytest.raises(RedrafterError, match=words):
        BatchDecoder(model, prompts, **options)


def test_caches_that_a_batch_has_not() -> None:
    config = DecodingConfig(cache_options=CacheOptions(kv_bits=8))
    with pytest.raises(RedrafterError, match="leave kv_bits and max_kv_size out"):
        BatchDecoder(SpeculativeModel(target("llama")), [[1]], config)
