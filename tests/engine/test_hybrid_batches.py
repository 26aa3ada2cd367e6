"""Hybrids decoded together with one another: each text is the one it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import architectures
import mlx.core as mx
import pytest
from architectures import prompt_of
from common_config import VOCAB

from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

KINDS = ["falcon_h1", "qwen3_next", "lfm2", "rwkv7", "baichuan_m1", "longcat_flash_ngram"]
# One of a single token, after which no state has been made yet; two shorter than an n-gram.
PROMPTS = [prompt_of(length, seed=length) for length in (2, 21, 9, 1, 14)]
GREEDY = DecodingConfig(max_tokens=10)
SAMPLED = replace(GREEDY, sampling=SamplingConfig(temperature=0.9, top_p=0.9, seed=5))


class Hidden:
    """Trees in which what follows the root in any of the texts stands among wrong branches."""

    seconds = 0.0
    max_depth = 3
    nodes = 12

    def __init__(self, texts: Sequence[Sequence[int]]):
        self._texts = [list(text) for text in texts]

    def __call__(self, state: DraftInput) -> DraftTree:
        root = int(state.root.item())
        tokens, parents = [root, (root + 1) % VOCAB, (root + 2) % VOCAB], [-1, 0, 1]
        before = [*state.text, root]
        for text in self._texts:
            if text[: len(before)] == before:
                at = 0
                for token in text[len(before) : len(before) + self.max_depth]:
                    tokens += [(token + 1) % VOCAB, token]
                    parents += [at, at]
                    at = len(tokens) - 1
        while len(tokens) < self.nodes:
            tokens.append((tokens[-1] + 3) % VOCAB)
            parents.append(1)
        return DraftTree.from_parents(tokens[: self.nodes], parents[: self.nodes])


@cache
def target(name: str) -> Target:
    return Target(architectures.build(name))


def alone(
    model: SpeculativeModel, config: DecodingConfig, prompts: Sequence[list[int]] = PROMPTS
) -> list[list[int]]:
    plain = replace(config, draft=False)
    return [[one.token for one in decode(model, prompt, plain)] for prompt in prompts]


def whole(prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> list[list[int]]:
    return [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]


def together(
    model: SpeculativeModel, config: DecodingConfig, size: int
) -> tuple[list[list[int]], int]:
    texts: dict[int, list[int]] = {}
    decoder = BatchDecoder(model, PROMPTS, config, batch_size=size)
    for index, token in decoder:
        texts.setdefault(index, []).append(token.token)
    return [texts[index] for index in range(len(PROMPTS))], sum(s.accepted for s in decoder.stats)


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", KINDS)
def test_each_text_is_the_one_it_has_alone(name: str, config: DecodingConfig) -> None:
    """Plain and drafted; texts join and leave, and each accepts its own number of tokens."""
    plain = SpeculativeModel(target(name))
    expected = alone(plain, config)
    assert together(plain, config, 3) == (expected, 0)
    drafted = SpeculativeModel(target(name), Hidden(whole(PROMPTS, expected)))
    for size in (2, 5):
        got, accepted = together(drafted, config, size)
        assert got == expected
        assert accepted > len(PROMPTS) * 4


@pytest.mark.parametrize(
    "shape", [BeamShape(3, 3), BeamShape(4, 4, None, 3), BeamShape(1, 4)], ids=str
)
def test_a_beam_search_drafts_for_all(shape: BeamShape) -> None:
    drafter = RecurrentDrafter(
        DrafterConfig(hidden_size=64, vocab_size=VOCAB, exit_dim=128, num_draft_layers=1)
    )
    architectures.randomise(drafter, 0)
    model = SpeculativeModel(target("qwen3_next"), drafter)
    got, _ = together(model, replace(GREEDY, beam=shape), 3)
    assert got == alone(model, GREEDY)


def test_a_draft_is_read_before_its_paths_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no more of them are run than it has."""
    drafter = RecurrentDrafter(
        DrafterConfig(hidden_size=64, vocab_size=VOCAB, exit_dim=128, num_draft_layers=1)
    )
    architectures.randomise(drafter, 0)
    model = SpeculativeModel(target("qwen3_next"), drafter)
    verified: list[DraftTree] = []
    verify = Target.verify

    def noted(self: Target, tree: DraftTree, *args: Any) -> Any:
        verified.append(tree)
        return verify(self, tree, *args)

    monkeypatch.setattr(Target, "verify", noted)
    list(decode(model, PROMPTS[1], replace(GREEDY, beam=BeamShape(4, 4))))
    drafted = [tree for tree in verified if len(tree) > 1]
    assert drafted
    for tree in drafted:
        parents = set(tree.parents.tolist())
        assert tree.leaf_bound == sum(node not in parents for node in range(len(tree)))
        assert tree.max_depth == max(tree.depths.tolist())


def test_a_text_that_leaves_a_batch_is_gone_on_with() -> None:
    """What it has committed goes into caches of its own."""
    of = target("falcon_h1")
    held = []
    for prompt in PROMPTS[1:3]:
        cache_ = of.make_cache()
        of.prefill(mx.array(prompt), cache_)
        cache_.extend(prompt)
        held.append(cache_)
    batch = of.make_batch_cache()
    batch.compose([], held)
    trees = [DraftTree.from_parents([5, 6, 7], [-1, 0, 0]) for _ in held]
    of.verify_batch(trees, batch)
    for row, path in zip(batch.rows, ([0, 2], [0]), strict=True):
        row.commit(path, [5, 7][: len(path)])
    batch.commit()
    for place, prompt in enumerate(PROMPTS[1:3]):
        own = of.make_cache()
        batch.extract(place, own)
        assert own.tokens == prompt + [5, 7][: 2 - place]
        logits, _ = of.verify(DraftTree.root_only(mx.array([8])), own)
        expected = of.model(mx.array([[*own.tokens, 8]]), cache=of.make_cache().seams)[0, -1]
        assert mx.allclose(logits[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "drafted"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_text_leaves_that_is_stopped_while_a_step_is_under_way(
    kind: str, *, draft: bool
) -> None:
    """Nothing of that step: a conversation goes on from it as from cold caches."""
    plain = SpeculativeModel(target(kind))
    prompts = [PROMPTS[1], PROMPTS[4]]
    texts = whole(prompts, alone(plain, GREEDY, prompts))
    model = SpeculativeModel(plain.target, Hidden(texts) if draft else None)
    kept: list[PromptCache] = []
    engine = Engine(model, keep=kept.append)
    stopped, _ = [engine.add(prompt, GREEDY) for prompt in prompts]
    made = 0
    while made < 5:
        events = [event for event in engine.step() if isinstance(event, NewToken)]
        made += sum(event.sequence == stopped for event in events)
    engine.stop(stopped)
    (cache,) = kept
    assert cache.tokens == texts[0][: len(cache)]
    follow = [*cache.tokens, 7, 8]
    assert cache.tokens
    resumed = [one.token for one in decode(plain, follow, GREEDY, cache=cache)]
    assert resumed == [one.token for one in decode(plain, follow, GREEDY)]


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "drafted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_joins_when_all_others_were_stopped_begins_afresh(
    kind: str, *, draft: bool
) -> None:
    """A step of theirs was under way: nothing of it comes back."""
    plain = SpeculativeModel(target(kind))
    prompts = [PROMPTS[1], PROMPTS[4], PROMPTS[3]]  # the last is read at once
    texts = alone(plain, GREEDY, prompts)
    hidden = Hidden(whole(prompts, texts))
    engine = Engine(SpeculativeModel(plain.target, hidden if draft else None))
    first = [engine.add(prompt, GREEDY) for prompt in prompts[:2]]
    while sum(isinstance(event, NewToken) for event in engine.step()) < 2:
        pass
    last, made = engine.add(prompts[2], GREEDY), list[int]()
    while engine.busy:
        for event in engine.step():
            if isinstance(event, NewToken) and event.sequence == last:
                made.append(event.decoded.token)
        if made:  # it is about to join them
            for one in first:
                engine.stop(one)
    assert made == texts[2]
