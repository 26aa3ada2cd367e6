"""Sources of drafts beside the beam search, each hearing what becomes of its text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput, DraftSource, ProposingSource, as_source
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

PROMPTS = [models.prompt_of(length, seed=length) for length in (4, 11, 7)]
LENGTH = 16
DEPTH = 3


class Oracle:
    """Knows how texts go on; what it proposes for one depends on what it heard of it alone.

    Args:
        texts: Prompts with their continuations.
        wrong: Propose wrong tokens instead.
    """

    max_depth = DEPTH
    seconds = 0.0
    lookback: int | None = None

    def __init__(self, texts: Sequence[Sequence[int]], *, wrong: bool = False):
        self._texts = [list(text) for text in texts]
        self._wrong = wrong
        self.begun: list[Heard] = []

    def begin(self, prompt: Sequence[int]) -> DraftSource:
        (text,) = [text for text in self._texts if text[: len(prompt)] == list(prompt)]
        self.begun.append(Heard(text, list(prompt), wrong=self._wrong))
        return self.begun[-1]

    def __call__(self, state: DraftInput) -> DraftTree:
        raise AssertionError("each text has a source of its own")

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        raise AssertionError("each text has a source of its own")

    def accepted(self, tokens: Sequence[int]) -> None:
        raise AssertionError("each text has a source of its own")


class Heard(Oracle):
    """The source of one text."""

    def __init__(self, text: list[int], heard: list[int], *, wrong: bool):
        self._text, self.heard, self._wrong = text, heard, wrong

    def __call__(self, state: DraftInput) -> DraftTree:
        at = len(self.heard)
        assert self.heard == [*state.text, int(state.root.item())] == self._text[:at]
        after = self._text[at : at + DEPTH]
        if self._wrong:
            after = [(token + 1) % models.VOCAB for token in after]
        return DraftTree.from_parents([self.heard[-1], *after], range(-1, len(after)))

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        return [self(state) for state in states]

    def accepted(self, tokens: Sequence[int]) -> None:
        self.heard += tokens


@cache
def target(name: str) -> Target:
    return Target(models.shared(name))


def config_of(temperature: float, **options: Any) -> DecodingConfig:
    sampling = SamplingConfig(temperature, seed=5)
    return DecodingConfig(LENGTH, sampling, beam=BeamShape(2, 4), **options)


def texts_of(model: Target, config: DecodingConfig) -> list[list[int]]:
    plain = SpeculativeModel(model)
    more = DecodingConfig(LENGTH + DEPTH + 1, config.sampling)
    return [p + [one.token for one in decode(plain, p, more)] for p in PROMPTS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama:sliding"])
def test_a_source_beside_the_beam(name: str, temperature: float, wrong: bool) -> None:
    of, config = target(name), config_of(temperature)
    texts = texts_of(of, config)
    drafter = models.build_drafter(seed=1)
    guessed = AcceptanceStats()
    for prompt, text in zip(PROMPTS, texts, strict=True):
        oracle = Oracle(texts, wrong=wrong)
        model = SpeculativeModel(of, drafter, beside=[oracle])
        stats = AcceptanceStats()
        made = [one.token for one in decode(model, prompt, config, stats=stats)]
        assert made == text[len(prompt) : len(prompt) + LENGTH]
        (heard,) = oracle.begun
        assert heard.heard == prompt + made
        if not wrong:  # what the source knows is accepted: DEPTH tokens and one of the target's
            assert stats.steps <= -(-(LENGTH - 1) // (DEPTH + 1))
        list(decode(SpeculativeModel(of, drafter), prompt, config, stats=guessed))
    if wrong:
        assert guessed.steps > 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("head", [True, False])
def test_sources_of_a_batch_hear_their_own_texts(temperature: float, head: bool) -> None:
    of, config = target("llama"), config_of(temperature)
    texts = texts_of(of, config)
    oracle = Oracle(texts)
    drafter = models.build_drafter(seed=1) if head else None
    model = SpeculativeModel(of, drafter, beside=[oracle])
    decoder = BatchDecoder(model, PROMPTS, config, batch_size=2)
    made: list[list[int]] = [[] for _ in PROMPTS]
    for index, one in decoder:
        made[index].append(one.token)
    assert made == [t[len(p) : len(p) + LENGTH] for p, t in zip(PROMPTS, texts, strict=True)]
    assert [own.heard for own in oracle.begun] == [
        p + text for p, text in zip(PROMPTS, made, strict=True)
    ]
    assert all(stats.steps <= 4 for stats in decoder.stats)


def test_several_sources_beside_the_beam() -> None:
    of, config = target("llama"), config_of(0.0)
    texts = texts_of(of, config)
    sources = [Oracle(texts, wrong=True), Oracle(texts), Oracle(texts)]
    model = SpeculativeModel(of, models.build_drafter(seed=1), beside=sources)
    stats = AcceptanceStats()
    made = list(decode(model, PROMPTS[0], config, stats=stats))
    assert [one.token for one in made] == texts[0][len(PROMPTS[0]) :][:LENGTH]
    assert stats.steps <= 4


def test_what_only_proposes_is_a_source() -> None:
    """The first three members are enough, as they were before sources heard anything."""

    class Repeating:
        max_depth, seconds = 2, 0.5

        def __call__(self, state: DraftInput) -> DraftTree:
            root = int(state.root.item())
            return DraftTree.from_parents([root] * 3, [-1, 0, 1])

    source = as_source(Repeating())
    assert isinstance(source, ProposingSource)
    assert (source.max_depth, source.seconds, source.lookback) == (2, 0.5, None)
    assert source.begin([1, 2]) is source
    source.accepted([3])
    state = DraftInput(mx.array([7]), mx.zeros((models.HIDDEN,)), None)
    assert [tree.tokens.tolist() for tree in source.together([state] * 2)] == [[7, 7, 7]] * 2
    whole = Oracle([])
    assert as_source(whole) is whole
    model = SpeculativeModel(target("llama"), Repeating())
    expected = [one.token for one in decode(SpeculativeModel(model.target), PROMPTS[0])]
    assert [one.token for one in decode(model, PROMPTS[0])] == expected


def test_a_head_whose_parameters_change_is_followed() -> None:
    """Fine-tuned or quantised in the process: drafts are those of a model made anew."""
    of, config = target("llama"), config_of(0.0)
    drafter = models.build_drafter(seed=1, exit_dim=64)
    model = SpeculativeModel(of, drafter)

    def trees(of_model: SpeculativeModel) -> list[Any]:
        made = decode(of_model, PROMPTS[1], config)
        return [one.step.tree.tokens for one in made if one.step is not None]

    before = trees(model)
    prepared = model.prepared
    assert trees(model) == before
    assert model.prepared is prepared
    drafter.update(models.build_drafter(seed=2, exit_dim=64).parameters())
    after = trees(model)
    assert after != before
    assert after == trees(SpeculativeModel(of, drafter))
    for name, array in tree_flatten(drafter.parameters()):  # in place, so the objects stay
        prepared = model.prepared
        array[...] = array[::-1] if name.endswith("weight") else array + 1
        assert trees(model) == trees(SpeculativeModel(of, drafter)), name
        assert model.prepared is not prepared, name
    assert trees(model) != after
    nn.quantize(drafter, group_size=32, bits=8)
    assert trees(model) == trees(SpeculativeModel(of, drafter))
    prepared = model.prepared
    drafter.lm_head[-1].scales[...] = drafter.lm_head[-1].scales[::-1]
    assert trees(model) == trees(SpeculativeModel(of, drafter))
    assert model.prepared is not prepared


class Proposing:
    """Proposes what it is given, or what that makes of the root."""

    max_depth, seconds = 2, 0.0

    def __init__(self, proposal: Any):
        self._proposal = proposal

    def __call__(self, state: DraftInput) -> Any:
        asked = callable(self._proposal)
        return self._proposal(int(state.root.item())) if asked else self._proposal


PROPOSALS: list[tuple[Any, str]] = [
    (None, "has to propose a DraftTree, and proposed None"),
    ([1, 2], r"has to propose a DraftTree, and proposed \[1, 2\]"),
    (lambda root: DraftTree.from_parents([root, 10**6], [-1, 0]), "outside the vocabulary of 64"),
    (lambda root: DraftTree.from_parents([root, -5], [-1, 0]), "outside the vocabulary of 64"),
    (lambda root: DraftTree.from_parents([(root + 1) % 64, 3], [-1, 0]), "with the root"),
    (lambda root: DraftTree.from_parents([root, 3, 3, 3], [-1, 0, 1, 2]), "of depth 3, but its"),
]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a head"])
@pytest.mark.parametrize(("proposal", "words"), PROPOSALS)
def test_what_a_source_cannot_propose_is_refused(proposal: Any, words: str, beside: bool) -> None:
    """In one sentence, before the target reads it; and the text can be gone on with."""
    plain, source = models.shared("llama"), Proposing(proposal)
    first = models.build_drafter() if beside else source
    model = SpeculativeModel(plain, first, beside=[source] if beside else [])
    cache, prompt = model.make_cache(), models.prompt_of(9)
    with pytest.raises(RedrafterError, match=words):
        list(decode(model, prompt, DecodingConfig(6), cache=cache))
    undrafted = DecodingConfig(6, draft=False)
    after = [one.token for one in decode(model, prompt, undrafted, cache=cache)]
    assert after == [one.token for one in decode(SpeculativeModel(plain), prompt, undrafted)]


class Beginning(Proposing):
    """Has more than it takes to propose, but not all that a source has."""

    def begin(self, prompt: Any) -> Any:
        return self


def test_a_source_with_some_of_the_further_members_only_is_refused() -> None:
    """It would lose them without a word."""
    told = "Beginning has begin, but no lookback and no together and no accepted: give it all"
    with pytest.raises(RedrafterError, match=told):
        SpeculativeModel(models.shared("llama"), Beginning(None))
    with pytest.raises(RedrafterError, match=told):
        as_source(Beginning(None))


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (None, "begin has to return the source for one text, which may be itself, and returned N"),
        (Beginning(None), "Beginning has begin, but no lookback"),
    ],
)
def test_what_a_source_begins_for_a_text_is_a_source(begun: Any, words: str) -> None:
    class Begins(ProposingSource):
        def begin(self, prompt: Any) -> Any:
            return begun

    model = SpeculativeModel(models.shared("llama"), Begins(Proposing(None)))
    with pytest.raises(RedrafterError, match=words):
        list(decode(model, models.prompt_of(4), DecodingConfig(5)))


def test_a_source_may_begin_one_that_only_proposes() -> None:
    class Begins(ProposingSource):
        def begin(self, prompt: Any) -> Any:
            return Proposing(lambda root: DraftTree.from_parents([root, 3], [-1, 0]))

    model = SpeculativeModel(models.shared("llama"), Begins(Proposing(None)))
    plain, prompt = SpeculativeModel(model.target), models.prompt_of(4)
    expected = [one.token for one in decode(plain, prompt, DecodingConfig(5))]
    assert [one.token for one in decode(model, prompt, DecodingConfig(5))] == expected


def test_a_source_answers_for_every_text_of_a_batch() -> None:
    class TooFew(ProposingSource):
        def together(self, states: Any) -> Any:
            return super().together(states)[1:]

    source = TooFew(Proposing(lambda root: DraftTree.from_parents([root, 3], [-1, 0])))
    model = SpeculativeModel(models.shared("llama"), source)
    with pytest.raises(RedrafterError, match="a DraftTree for each text, and returned"):
        list(BatchDecoder(model, [models.prompt_of(4), models.prompt_of(5)], DecodingConfig(5)))
