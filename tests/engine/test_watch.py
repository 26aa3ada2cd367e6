"""Drafts that nothing verifies: texts and steps are plain's, and outcomes what would have been."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from decoding_cases import (
    PROMPT,
    SAMPLED,
    ScriptedPlanner,
    assert_planned_as_plain,
    path_along,
    plain,
    plain_model,
)

import models
from mlx_redrafter import load
from mlx_redrafter.drafting.next_draft import NextDraft
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step import PendingStep
from mlx_redrafter.engine.watch import Watch, WatchedDraft
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree, HostTree

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
SHAPE = BeamShape(3, 4)


class Watching(ScriptedPlanner):
    """A planner that verifies nothing, and watches a draft wherever it may."""

    def __init__(self, patience: int = 0) -> None:
        self.plan = StepPlan(watch=SHAPE, patience=patience)
        self.steps: list[ObservedStep] = []

    def observe(self, step: ObservedStep) -> None:
        assert step.is_plain
        assert step.next_shape == (SHAPE if step.watching else None)
        self.steps.append(step)

    @property
    def watched(self) -> list[WatchedDraft]:
        return [watched for step in self.steps for watched in step.watched]


def begun(*tokens: int, parents: tuple[int, ...]) -> Watch:
    watch = Watch()
    watch.launch()
    scores = tuple(-0.5 * node for node in range(len(tokens)))
    tree = DraftTree.from_parents(tokens, parents, scores)
    watch.begin(NextDraft(SHAPE, tree, watched=True, verified=False))
    return watch


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ([[7]], (0,)),  # nothing of it
        ([[2], [9]], (0, 1)),
        ([[2], [4]], (0, 1, 3)),  # to a leaf
        ([[2, 4, 8]], (0, 1, 3)),  # several in one step
        ([[3]], (0, 2)),
    ],
)
def test_a_draft_is_followed_as_far_as_the_text_goes_along(
    text: list[list[int]], path: tuple[int, ...]
) -> None:
    watch = begun(1, 2, 3, 4, parents=(-1, 0, 0, 1))
    for tokens in text[:-1]:
        watch.follow(tokens)
        assert not watch.idle
        assert watch.take() == []
    watch.follow(text[-1])
    (over,) = watch.take()
    assert over.draft.path == path
    assert over.tokens == len(path)
    assert watch.idle
    assert watch.take() == []


def test_what_the_text_says_before_it_begins_does_not_count() -> None:
    watch = Watch()
    watch.launch()
    watch.follow([5, 6])
    assert not watch.idle
    assert watch.take() == []


@pytest.mark.parametrize("kind", ["beam search", "memory"])
@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17, 30])
def test_texts_are_plain_s(kind: str, sampling: SamplingConfig, max_tokens: int) -> None:
    planner = Watching()
    stats = assert_planned_as_plain(planner, max_tokens, sampling, kind)
    assert (stats.drafted, stats.steps) == (0, max_tokens - 1)
    assert sum(step.repeats for step in planner.steps) == stats.steps
    if max_tokens > 10:
        assert any(step.watching for step in planner.steps)
        # A draft beside it keeps no step from overlapping with those around it.
        assert all(step.early or step.context < 2 + len(PROMPT) for step in planner.steps)
        assert all(step.overlapped for step in planner.steps[:-1])
        made = sum(step.watching for step in planner.steps)
        assert made - 1 <= len(planner.watched) <= made


def test_how_a_draft_went_is_told_at_once_though_the_planner_has_patience() -> None:
    eager, patient = Watching(), Watching(patience=5)
    for planner in (eager, patient):
        assert_planned_as_plain(planner, 40, SAMPLED)
        assert all(step.repeats == 1 for step in planner.steps if step.watched)
    assert any(step.repeats > 1 for step in patient.steps)
    assert 0 < len(patient.watched) < len(eager.watched)


def test_a_model_without_a_drafter_watches_nothing() -> None:
    planner: Any = Watching()
    config = DecodingConfig(12, SAMPLED)
    text = [one.token for one in decode(plain_model(), PROMPT, config, planner=planner)]
    assert text == plain(PROMPT, 12)
    assert not any(step.watching for step in planner.steps)


def test_the_draft_s_time_is_counted_as_a_draft_s() -> None:
    class Dear(Watching):
        class costs:
            @staticmethod
            def draft_seconds(shape: BeamShape) -> float:
                return 0.25

    planner: Any = Dear()
    stats = assert_planned_as_plain(planner, 17, SAMPLED)
    made = sum(step.watching for step in planner.steps)
    assert made
    assert stats.draft_seconds == pytest.approx(0.25 * made)


def test_after_an_abandoned_text_another_is_plain_s() -> None:
    model = SpeculativeModel(models.shared("llama:sliding"), models.build_drafter())
    cache, planner = model.make_cache(), Watching()
    stream = decode(model, PROMPT, DecodingConfig(20, SAMPLED), cache=cache, planner=planner)
    given = [next(stream).token for _ in range(7)]
    stream.close()
    assert given == plain(PROMPT, 7)
    again = decode(model, PROMPT, DecodingConfig(20, SAMPLED), cache=cache, planner=planner)
    assert [one.token for one in again] == plain(PROMPT, 20)


def trees_begun(monkeypatch: pytest.MonkeyPatch) -> list[HostTree]:
    """The drafts that are compared from now on."""
    trees: list[HostTree] = []
    begin = Watch.begin

    def noting(watch: Watch, draft: NextDraft) -> None:
        assert draft.tree is not None
        trees.append(draft.tree.read())
        begin(watch, draft)

    monkeypatch.setattr(Watch, "begin", noting)
    return trees


class Comparing(ScriptedPlanner):
    """A planner that verifies a part of each draft, and has them all compared with the text."""

    plan = StepPlan(SHAPE, early=True, watched=True)

    def __init__(self) -> None:
        self.steps: list[ObservedStep] = []

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return context % 4  # of some nothing

    def observe(self, step: ObservedStep) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("kind", ["beam search", "memory"])
@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_that_is_verified_in_part_is_compared_as_a_whole(
    kind: str, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = trees_begun(monkeypatch)
    planner = Comparing()
    assert_planned_as_plain(planner, 60, sampling, kind)
    text = plain(PROMPT, 60, sampling)
    made, roots = 1, []
    for step, after in pairwise(planner.steps):
        assert after.watched_before == step.next_watched
    for step in planner.steps:
        assert not step.watching
        made += len(step.records[0].path)
        roots += [made] if step.next_watched else []
    over = [watched for step in planner.steps for watched in step.watched]
    unfinished = {step.next_watched for step in planner.steps}
    assert unfinished == {True, False}, "while one is under way no other is compared"
    assert any(step.watched_before and step.is_plain for step in planner.steps)
    first = trees[: len(trees) - len(roots)]  # the step of the first token is told to nobody
    assert len(first) <= 1
    for root, tree, watched in zip(roots, trees[len(first) :], over[len(first) :], strict=False):
        assert watched.draft.path == path_along(tree, text[root:])
        assert watched.draft.tree.parents == tree.parents
        assert watched.verified
        assert len(tree.tokens) == 1 + SHAPE.nodes
    assert len(over) >= 5


def test_after_a_step_that_is_taken_again_drafts_are_compared_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A branch may have computed no numbers: then the step's own draft for the next is dropped."""
    dropped = 0

    def spoilt(step: PendingStep) -> bool:
        nonlocal dropped
        draft = step.next_draft
        spoils = dropped < 2 and draft is not None and draft.watched and not step.is_plain
        dropped += spoils
        return not spoils

    monkeypatch.setattr(PendingStep, "is_trustworthy", property(spoilt))
    planner = Comparing()
    assert_planned_as_plain(planner, 60, SAMPLED)
    assert dropped == 2
    assert sum(step.next_watched for step in planner.steps) >= 5


@pytest.mark.skipif(not (POCKET / "model.safetensors").is_file(), reason="the pocket model")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outcomes_are_what_verifying_would_have_kept(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = trees_begun(monkeypatch)
    model, tokenizer = load(POCKET, plan=False)
    chat = [{"role": "user", "content": "What does list.append do?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    config = DecodingConfig(40, SamplingConfig(temperature, seed=3), copy=False)
    planner, stats = Watching(), AcceptanceStats()
    text = [one.token for one in decode(model, prompt, config, planner=planner, stats=stats)]
    at = [
        sum(step.repeats for step in planner.steps[: place + 1])
        for place, step in enumerate(planner.steps)
        if step.watching
    ]
    assert len(at) == len(trees)
    for place, tree, watched in zip(at, trees, planner.watched, strict=False):
        assert tree.tokens[0] == text[place]  # of the first one no step is told
        assert watched.draft.path == path_along(tree, text[place + 1 :])
        assert watched.draft.tree.parents == tree.parents
    assert max(watched.tokens for watched in planner.watched) == 1 + SHAPE.length
