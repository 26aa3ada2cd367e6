"""Drafts made in the graph of the step before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from decoding_cases import (
    KINDS,
    PROMPT,
    SAMPLED,
    Evaluations,
    ScriptedPlanner,
    assert_consistent,
    assert_planned_as_plain,
)

import models
from mlx_redrafter import load
from mlx_redrafter.choices import Choices
from mlx_redrafter.drafting.beam_search import BeamSearch
from mlx_redrafter.drafting.kinds import prepare
from mlx_redrafter.drafting.next_draft import next_draft_input
from mlx_redrafter.drafting.noise_scale import NoiseScale
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.tree import DraftTree, HostTree, accept

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"


@pytest.mark.parametrize("lookback", [0, 3])
@pytest.mark.parametrize("text", [[], [4], [9, 3, 8, 2, 5]], ids=len)
def test_a_draft_is_told_what_it_would_be_told_later(lookback: int, text: list[int]) -> None:
    drafter = models.build_drafter(lookback=lookback, seed=4)
    embed = Target(models.shared("llama")).embed
    search = BeamSearch(prepare(drafter), embed, BeamShape(2, 3), SamplingConfig(1.0))
    tokens, parents = [7, 5, 6, 9, 8], [-1, 0, 1, 0, 2]
    tree = DraftTree.from_parents(tokens, parents)
    hidden = mx.random.normal((5, models.HIDDEN), key=mx.random.key(0))
    flipped_by_noise = [True, False, True, False, True]
    noise = mx.random.gumbel((1 + 3 + 3, models.VOCAB), key=mx.random.key(1))
    for choices in ([5, 6, 1, 1, 1], [2, 2, 2, 2, 2], [5, 6, 8, 1, 3], [9, 1, 1, 4, 1]):
        path = accept(tokens, parents, choices)
        end, depth = path[-1], len(path) - 1
        noise_scale = NoiseScale()
        noise_scale.observe([False, True])
        chosen = Choices(mx.array(choices, dtype=mx.int32), mx.array(flipped_by_noise))
        ahead = next_draft_input(tree, chosen, hidden, noise, text, search, noise_scale)
        noise_scale.observe([flipped_by_noise[node] for node in path])
        later = DraftInput(
            mx.array([choices[end]], dtype=mx.int32),
            hidden[end],
            noise[depth + 1 :] * noise_scale.scale,
            [*text, *(tokens[node] for node in path)],
        )
        assert ahead.noise is not None
        assert mx.allclose(ahead.noise, later.noise[:3], atol=1e-5)
        one, other = search(ahead), search(later)
        assert one.tokens.tolist() == other.tokens.tolist()
        assert mx.allclose(one.log_probs, other.log_probs, atol=1e-5)


@pytest.mark.parametrize("lookback", [0, 1, 3])
@pytest.mark.parametrize("text", [[], [4], [9, 3, 8, 2, 5]], ids=len)
@pytest.mark.parametrize("flipped", [True, False])
def test_after_a_plain_step_too(lookback: int, text: list[int], flipped: bool) -> None:
    drafter = models.build_drafter(lookback=lookback, seed=4)
    embed = Target(models.shared("llama")).embed
    search = BeamSearch(prepare(drafter), embed, BeamShape(2, 3), SamplingConfig(1.0))
    hidden = mx.random.normal((1, models.HIDDEN), key=mx.random.key(0))
    noise = mx.random.gumbel((1 + 3, models.VOCAB), key=mx.random.key(1))
    noise_scale = NoiseScale()
    noise_scale.observe([False, True])
    chosen = Choices(mx.array([6], dtype=mx.int32), mx.array([flipped]))
    root = DraftTree.root_only(mx.array([7]))
    ahead = next_draft_input(root, chosen, hidden, noise, text, search, noise_scale)
    noise_scale.observe([flipped])
    later = DraftInput(
        mx.array([6], dtype=mx.int32), hidden[0], noise[1:] * noise_scale.scale, [*text, 7]
    )
    assert ahead.noise is not None
    assert later.noise is not None
    assert mx.allclose(ahead.noise, later.noise, atol=1e-5)
    one, other = search(ahead), search(later)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert mx.allclose(one.log_probs, other.log_probs, atol=1e-5)


class Ahead(ScriptedPlanner):
    """A planner that drafts ahead, and verifies as much of each draft as it is told to."""

    def __init__(self, shapes: Sequence[BeamShape | None], counts: Sequence[int]):
        self._shapes, self._counts = shapes, counts
        self.trimmed = 0
        self.verified: list[int] = []

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self._shapes[len(self.verified) % len(self._shapes)], early=True)

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        drafted = len(tree.tokens) - 1
        assert drafted <= max(shape.nodes for shape in self._shapes if shape)
        self.trimmed += 1
        return min(drafted, self._counts[self.trimmed % len(self._counts)])

    def observe(self, step: ObservedStep) -> None:
        (record,) = step.records
        assert record.drafted == 0 or step.shape is not None
        self.verified.append(record.drafted)


WIDE, CHAIN = BeamShape(3, 4, 7), BeamShape(1, 4)


@pytest.mark.parametrize("kind", ["beam search", "memory"])
@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_tokens", [1, 2, 17, 30])
@pytest.mark.parametrize("shapes", [[WIDE], [CHAIN, WIDE], [None, CHAIN, None, None]], ids=len)
def test_texts_are_plain_s(
    kind: str, sampling: SamplingConfig, max_tokens: int, shapes: list[BeamShape | None]
) -> None:
    planner = Ahead(shapes, [7, 0, 2, 1])
    stats = assert_planned_as_plain(planner, max_tokens, sampling, kind)
    assert len(planner.verified) == stats.steps
    assert stats.drafted == sum(planner.verified)


def test_a_step_is_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, stats = Evaluations(monkeypatch), AcceptanceStats()
    planner = Ahead([WIDE, None, CHAIN], [7, 0, 2])
    model = KINDS["beam search"]()
    list(decode(model, PROMPT, DecodingConfig(17), stats=stats, planner=planner))
    assert planner.trimmed > 0
    assert len(counted.launched) == 1 + stats.steps + 1  # the last for what the cache keeps


def test_an_abandoned_text_leaves_the_cache_in_order() -> None:
    model, planner = KINDS["beam search"](), Ahead([WIDE], [7, 3])
    cache = model.make_cache()
    stream = decode(model, PROMPT, DecodingConfig(17, SAMPLED), cache=cache, planner=planner)
    text = [next(stream).token for _ in range(5)]
    stream.close()
    assert_consistent(cache, PROMPT + text[:-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_next_are_accepted_as_others_are(temperature: float) -> None:
    model, tokenizer = load(POCKET, plan=False)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What does np.clip do?"}])
    config = DecodingConfig(
        60,
        SamplingConfig(temperature, seed=1),
        beam=BeamShape(1, 5),
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
    )
    steps = {}
    for name, planner in (("ahead", Ahead([config.beam], [5])), ("not", None)):
        stats = AcceptanceStats()
        text = [
            token.token for token in decode(model, prompt, config, stats=stats, planner=planner)
        ]
        steps[name] = (text, stats.steps)
    assert steps["ahead"][0] == steps["not"][0]
    assert steps["ahead"][1] == steps["not"][1]
    assert steps["not"][1] < len(steps["not"][0]) / 2


def test_nothing_is_drafted_behind_a_draft_that_ends_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = load(POCKET, plan=False)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What does np.clip do?"}])
    drafted = []
    search = BeamSearch.together

    def counted(self: BeamSearch, states: Sequence[DraftInput]) -> list[DraftTree]:
        drafted.extend(states)
        return search(self, states)

    monkeypatch.setattr(BeamSearch, "together", counted)
    ends = frozenset(tokenizer.eos_token_ids)
    stats, planner = AcceptanceStats(), Ahead([BeamShape(1, 15)], [15])
    config = DecodingConfig(100, eos_token_ids=ends)
    text = list(decode(model, prompt, config, stats=stats, planner=planner))
    assert text[-1].from_draft
    assert text[-1].finish_reason == "stop"
    # One with the prompt, and one with every step but the last.
    assert len(drafted) == stats.steps


class Watched(Ahead):
    """Verifies all that it is asked about, and remembers it, and how far the text was."""

    def __init__(self, shape: BeamShape):
        super().__init__([shape], [shape.nodes])
        self.made, self.trees = 1, list[tuple[int, HostTree]]()
        self.cut: list[bool] = []  # of the last step

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return len(tree.tokens) - 1

    def observe(self, step: ObservedStep) -> None:
        self.trees += [(self.made, record.tree) for record in step.records]
        self.cut = [record.cut for record in step.records]
        self.made += step.made


@pytest.mark.parametrize("shape", [BeamShape(1, 15), BeamShape(3, 8, 20)], ids=["chain", "tree"])
def test_nothing_is_verified_past_what_ends_the_text(shape: BeamShape) -> None:
    model, tokenizer = load(POCKET, plan=False)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What does np.clip do?"}])
    ends = frozenset(tokenizer.eos_token_ids)
    planner = Watched(shape)
    text = list(decode(model, prompt, DecodingConfig(100, eos_token_ids=ends), planner=planner))
    assert text[-1].finish_reason == "stop"
    last = planner.trees[-1][1]
    assert not ends.isdisjoint(last.tokens)
    assert len(last.tokens) < 1 + shape.nodes
    assert not any(last.comes_after(ends))
    assert planner.cut == [True]
    if shape.width == 1:
        assert last.tokens[-1] in ends


@pytest.mark.parametrize("max_tokens", [9, 14, 15])
def test_nothing_is_verified_past_the_longest_length(max_tokens: int) -> None:
    model, tokenizer = load(POCKET, plan=False)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What does np.clip do?"}])
    planner = Watched(BeamShape(1, 15))
    text = list(decode(model, prompt, DecodingConfig(max_tokens), planner=planner))
    assert len(text) == max_tokens
    deepest = [(made, max(tree.depths)) for made, tree in planner.trees]
    assert all(made + depth < max_tokens for made, depth in deepest)
    assert any(made + depth == max_tokens - 1 for made, depth in deepest)
