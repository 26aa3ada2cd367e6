from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import architectures
import mlx.core as mx
import pytest
from decoding_cases import Evaluations, VerifyingAll

import models
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.drafting.copies import TextCopies
from mlx_redrafter.drafting.copy_acceptance import CopyAcceptance
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine import copying
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.copying import (
    LOOK_EVERY,
    LOOK_RARELY,
    LOOK_SELDOM,
    MANY_IN_VAIN,
    TOKENS_IN_VAIN,
    SequenceCopies,
)  # fmt: skip
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.copy_planner import CopyPlanner
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree

PROMPT = models.prompt_of(12)
GREEDY = SamplingConfig()
SAMPLED = SamplingConfig(1.0, top_k=3, seed=4)
PENALISED = SamplingConfig(0.7, top_k=4, frequency_penalty=0.2, presence_penalty=0.1, seed=2)
WIDE, CHAIN = BeamShape(3, 4, 7), BeamShape(1, 4)


@dataclass
class Machine:
    """Prices on which a row costs a hundredth of a step."""

    row: float = 0.01
    draft: float = 0.1
    rate: float = 1.0
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def plain_seconds(self, context: int) -> float:
        return 1.0

    def apart_seconds(self, context: int) -> float:
        return 0.0

    def check_seconds(self, rows: int, context: int) -> float:
        return 1.0 + self.row * (rows - 1)

    def draft_seconds(self, shape: BeamShape) -> float:
        return self.draft

    def guessed(self, shape: BeamShape) -> float:
        return 0.8


class Copying(VerifyingAll):
    """A planner whose shapes are laid down, and whose copies are priced on a made-up machine."""

    def __init__(
        self,
        shapes: Sequence[BeamShape | None] = (None,),
        *,
        early: bool = False,
        machine: Machine | None = None,
    ):
        super().__init__()
        self._shapes, self._asked = shapes, 0
        self._early = early
        self.copies = CopyPlanner(lambda: machine or Machine())

    def for_batch(self, sequences: int) -> Any:
        return self

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self._shapes[len(self.steps) % len(self._shapes)], early=self._early)


@cache
def repeating() -> Any:
    """A model whose next token follows from the last: greedy texts go round in circles."""
    model = models.build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
    return model


def model_of(head: bool = False, **options: Any) -> SpeculativeModel:
    return SpeculativeModel(repeating(), models.build_drafter(**options) if head else None)


def written(
    model: SpeculativeModel,
    sampling: SamplingConfig,
    *,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 60,
    **options: Any,
) -> tuple[list[int], AcceptanceStats]:
    stats = AcceptanceStats()
    planner = options.pop("planner", None)
    held = options.pop("cache", None)
    config = DecodingConfig(max_tokens, sampling, **options)
    stream = decode(model, prompt, config, planner=planner, stats=stats, cache=held)
    return [decoded.token for decoded in stream], stats


@cache
def plainly(sampling: SamplingConfig, max_tokens: int = 60) -> list[int]:
    return written(model_of(), sampling, max_tokens=max_tokens, draft=False)[0]


SAMPLINGS = pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"]
)
PLANNED: dict[str, Any] = {
    "copies alone": lambda: (False, Copying()),
    "drafts in the step": lambda: (True, Copying([WIDE, CHAIN])),
    "drafts in the step before": lambda: (True, Copying([WIDE, CHAIN], early=True)),
    "drafts now and then": lambda: (True, Copying([None, WIDE, None], early=True)),
    "dear drafts": lambda: (True, Copying([WIDE], machine=Machine(draft=5.0))),
    "a fixed shape": lambda: (True, None),
    "no planner": lambda: (False, None),
}


@SAMPLINGS
@pytest.mark.parametrize("kind", PLANNED)
@pytest.mark.parametrize("max_tokens", [1, 2, 60])
def test_copied_texts_are_plain_s(kind: str, sampling: SamplingConfig, max_tokens: int) -> None:
    head, planner = PLANNED[kind]()
    model = model_of(head, lookback=2)
    beam = BeamShape(3, 3)
    options = {"copy": True, "beam": beam, "planner": planner, "max_tokens": max_tokens}
    text, stats = written(model, sampling, **options)
    assert text == plainly(sampling, 60)[:max_tokens]
    if max_tokens == 60 and sampling == GREEDY:
        assert stats.accepted_copies > 20
        assert stats.tokens_per_step > 2.5


@SAMPLINGS
@pytest.mark.parametrize("kind", ["copies alone", "drafts in the step before"])
def test_nothing_is_verified_past_what_ends_the_text(kind: str, sampling: SamplingConfig) -> None:
    head, planner = PLANNED[kind]()
    model = model_of(head, lookback=2)
    own = plainly(sampling)
    end = min(set(range(models.VOCAB)) - {*own, *PROMPT})
    prompt = [*PROMPT, *own[:6], end, *own[:6], end, *PROMPT]
    ends = frozenset({end})
    options: dict[str, Any] = {"prompt": prompt, "eos_token_ids": ends, "max_tokens": 40}
    wanted, _ = written(model, sampling, draft=False, **options)
    text, _ = written(model, sampling, copy=True, planner=planner, **options)
    assert text == wanted
    trees = [record.tree for step in planner.steps for record in step.records]
    assert any(end in tree.tokens for tree in trees) or sampling != GREEDY
    assert not any(any(tree.comes_after(ends)) for tree in trees)


@pytest.mark.parametrize("kind", ["copies alone", "drafts in the step before"])
def test_of_a_batch_nothing_is_verified_past_the_longest_lengths(kind: str) -> None:
    head, planner = PLANNED[kind]()
    model, limits = model_of(head, lookback=2), [3, 9, 14]
    prompts = [[*PROMPT, n] for n in (1, 2, 3)]
    texts = [written(model, GREEDY, prompt=prompt, draft=False)[0] for prompt in prompts]
    config = DecodingConfig(copy=True)
    decoder = BatchDecoder(model, prompts, config, max_tokens=limits, planner=planner)
    made: list[list[int]] = [[] for _ in limits]
    for place, decoded in decoder:
        made[place].append(decoded.token)
    assert made == [text[:limit] for text, limit in zip(texts, limits, strict=True)]


@pytest.mark.parametrize("kind", PLANNED)
def test_a_step_is_one_evaluation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, planner = PLANNED[kind]()
    model = model_of(head)
    counted = Evaluations(monkeypatch)
    _, stats = written(model, GREEDY, copy=True, planner=planner)
    assert len(counted.launched) == 1 + stats.steps + 1  # the last for what the cache keeps


def test_a_long_match_leaves_the_draft_out() -> None:
    planner = Copying([WIDE])
    written(model_of(True), GREEDY, copy=True, planner=planner)
    alone = [step for step in planner.steps if step.shape is None and step.nodes]
    assert alone
    assert max(step.nodes for step in alone) >= 31
    assert any(step.shape for step in planner.steps)


def test_where_copies_go_on_no_draft_is_made_for_the_next_step() -> None:
    planner = Copying([WIDE], early=True, machine=Machine(draft=0.6))
    written(model_of(True), GREEDY, copy=True, planner=planner, max_tokens=200)
    assert {step.next_shape for step in planner.steps} == {None, WIDE}


def test_a_draft_that_is_not_worth_verifying_was_made_all_the_same() -> None:
    """Beside copies, too: the planner is to know what was drafted with the step before."""
    planner = Copying([WIDE], early=True, machine=Machine(row=3.0))
    text, _ = written(model_of(True), GREEDY, copy=True, planner=planner)
    assert text == plainly(GREEDY)
    assert any(step.drafted_before and not step.nodes for step in planner.steps)
    for step, after in pairwise(planner.steps):
        assert after.drafted_before == step.next_shape


def test_a_fixed_shape_s_nodes_are_shared() -> None:
    _, stats = written(model_of(True), GREEDY, copy=True, beam=BeamShape(4, 5, 15))
    assert stats.accepted_copies > 0
    assert stats.drafted <= 15 * stats.steps


def test_nothing_is_copied_unless_asked() -> None:
    for options in ({"copy": False}, {"copy": True, "draft": False}):
        text, stats = written(model_of(), GREEDY, planner=Copying(), **options)
        assert text == plainly(GREEDY)
        assert (stats.drafted, stats.copied) == (0, 0)


class Proposing:
    """A caller's source that sees the text and proposes two tokens in turn, each with another."""

    seconds = 0.0
    max_depth = 2
    lookback = None

    def __call__(self, state: DraftInput) -> DraftTree:
        root = int(state.root.item())
        first, second = (root + 1) % models.VOCAB, (root + 2) % models.VOCAB
        return DraftTree.from_parents([root, first, second, first, second], [-1, 0, 0, 1, 2])

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        return [self(state) for state in states]

    def begin(self, prompt: Sequence[int]) -> Any:
        return self

    def accepted(self, tokens: Sequence[int]) -> None:
        """Nothing is remembered."""


@SAMPLINGS
@pytest.mark.parametrize("kind", [kind for kind in PLANNED if kind != "copies alone"])
def test_what_is_copied_is_known_beside_a_callers_source(
    kind: str, sampling: SamplingConfig
) -> None:
    head, planner = PLANNED[kind]()
    drafter = models.build_drafter() if head else None
    model = SpeculativeModel(repeating(), drafter, beside=[Proposing()])
    steps: list[StepRecord] = []
    config = DecodingConfig(60, sampling, copy=True, beam=BeamShape(3, 3))
    text = []
    for decoded in decode(model, PROMPT, config, planner=planner):
        text.append(decoded.token)
        steps += [decoded.step] if decoded.step else []
    assert text == plainly(sampling)
    assert any(step.copied for step in steps)
    for step in steps:
        root = step.tree.tokens[0]
        assert step.guessed.tree.tokens[0] == root
        for first in ((root + 1) % models.VOCAB, (root + 2) % models.VOCAB):
            node = step.tree.child(0, first)
            assert node is None or node not in step.copied, "the caller's own are no copies"


def test_plain_steps_overlap_where_nothing_is_to_be_copied() -> None:
    """The first step that has to wait for the token before it is one that may verify copies."""
    planner = Copying(machine=Machine(row=3.0))
    text, stats = written(model_of(), GREEDY, copy=True, planner=planner)
    assert text == plainly(GREEDY)
    assert stats.drafted == 0


def test_a_token_alone_that_no_copy_foretold_is_a_surprise_once() -> None:
    copies = SequenceCopies(TextCopies(), CopyAcceptance())
    copies.begin([1, 2, 3, 4, 1, 2])
    copies.accepted([9])
    assert not copies.take_surprise()  # nobody had asked what might follow
    copies.begin([1, 2, 3, 4, 1, 2])
    assert copies.propose(8) is not None
    copies.accepted([3])
    assert not copies.take_surprise()
    for token in (9, 8):  # another one than the copy, and one after which there was none
        copies.propose(8)
        copies.accepted([token])
        assert copies.take_surprise()
        assert not copies.take_surprise()


def test_copies_are_looked_for_less_often_where_they_are_of_no_use() -> None:
    copies = SequenceCopies(TextCopies(), CopyAcceptance())
    copies.begin([1, 2, 3])

    def rests(tokens: Sequence[int]) -> list[bool]:
        found = []
        for token in tokens:
            copies.accepted([token])
            found.append(copies.rests)
        return found

    assert not any(rests(range(10, 18)))
    assert rests(range(20, 28)) == 2 * [True, True, True, False]
    copies.accepted([28, 29])
    assert copies.rests, "a draft's guesses say nothing of copies"
    copies.accepted([2])
    assert copies.propose(8) is not None
    copies.accepted([9, 30])
    assert copies.rests, "nor do those that were right where the copy was not"
    copies.accepted([2])
    assert copies.propose(8) is not None
    copies.accepted([9, 30])
    assert not copies.rests, "copies are of use"
    assert not any(rests(range(31, 39)))
    assert rests([39]) == [True]


def test_texts_after_many_tokens_in_vain_begin_with_rarer_looks() -> None:
    acceptance = CopyAcceptance()
    copies = SequenceCopies(TextCopies(), acceptance)
    copies.begin([1, 2, 3])
    for token in range(TOKENS_IN_VAIN):
        copies.accepted([100 + token])
    following = SequenceCopies(TextCopies(), acceptance)
    following.begin([4, 5, 6, 7, 8, 9, 5])
    rests = []
    for token in (6, 7, 8, 9, 4, 5, 6, 7):
        following.accepted([token])
        rests.append(following.rests)
    assert rests == [*7 * [True], False]
    proposal = following.propose(8)
    assert proposal is not None, "the tokens of the steps between were read"
    assert proposal.copies.continuations[0].tokens[:3] == (8, 9, 5)
    following.accepted([8, 9])
    assert not following.rests
    copies.begin([1, 2, 3])
    assert not copies.rests, "copies are of use again"


def test_one_copy_that_was_right_makes_up_for_many_tokens_in_vain() -> None:
    acceptance = CopyAcceptance()
    acceptance.take_in_vain(TOKENS_IN_VAIN)
    copies = SequenceCopies(TextCopies(), acceptance)
    copies.begin([4, 5, 6, 7, 8, 9, 5, 6])
    assert copies.propose(8) is not None
    copies.accepted([7, 8])
    assert acceptance.in_vain == 0
    following = SequenceCopies(TextCopies(), acceptance)
    following.begin([1, 2, 3])
    for token in (10, 11):
        following.accepted([token])
        assert not following.rests, "of the next text, too, each step is looked at"


def test_looks_become_rarer_the_longer_they_are_in_vain() -> None:
    copies = SequenceCopies(TextCopies(), CopyAcceptance())
    copies.begin([1, 2, 3])
    looks = []
    for token in range(2 * MANY_IN_VAIN):
        copies.accepted([100 + token])
        looks.append(not copies.rests)
    few, some, many = 8, TOKENS_IN_VAIN, MANY_IN_VAIN
    assert sum(looks[few:some]) == (some - few) // LOOK_EVERY
    assert sum(looks[some:many]) == (many - some) // LOOK_RARELY
    assert sum(looks[many:]) == many // LOOK_SELDOM
    assert copies.propose(8) is None
    copies.begin([4, 5, 6, 7, 8, 9, 5, 6])
    found = copies.propose(8)
    assert found is not None
    copies.accepted([7, 8])
    assert not copies.rests, "copies are of use again"


def test_copies_that_were_wrong_for_long_are_proposed_again_once_they_are_right() -> None:
    """What is hardly ever right is not proposed, and learnt of all the same."""
    acceptance = CopyAcceptance()

    def proposed(follow: int) -> bool:
        copies = SequenceCopies(TextCopies(), acceptance)
        copies.begin([1, 2, 3, 4, 1])
        proposal = copies.propose(1)
        copies.accepted([follow])
        return proposal is not None

    assert [proposed(9) for _ in range(600)][-1] is False
    assert [proposed(2) for _ in range(20)][-1] is True


def test_texts_of_an_engine_share_what_they_learn_of_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also without a planner, and where they take turns: after one in vain looks are rarer."""
    monkeypatch.setattr(copying, "TOKENS_IN_VAIN", 8)
    engine, rests = Engine(model_of(), batch_size=1), []
    numbers = [engine.add(PROMPT, DecodingConfig(10, copy=True)) for _ in range(3)]
    for number in numbers:
        text = engine.sequence(number)
        while not text.emitted:
            engine.step()
        assert text.copies is not None
        rests.append(text.copies.rests)
        while text.finish_reason is None:
            engine.step()
    assert rests == [False, True, True]


def test_the_second_of_several_copies_is_judged_as_such_where_the_first_is_left_out() -> None:
    acceptance = CopyAcceptance()
    before = [1, 2, 3, 1, 2, 4, 1, 5, 1]  # 1 was followed by 2 twice, and by 5
    for follow in [5] * 400:
        copies = SequenceCopies(TextCopies(), acceptance)
        copies.begin(before)
        proposal = copies.propose(1)
        copies.accepted([follow])
    assert proposal is not None
    assert [one.tokens for one in proposal.copies.continuations] == [(5,)]
    found = TextCopies()
    found.follow(before)
    copies_found = found.propose(1)
    assert copies_found is not None
    assert copies_found.continuations[0].tokens == (2,), "it is found first, and hardly ever right"
    assert acceptance.likely(copies_found)[1] == [1.0, pytest.approx(proposal.chances[1], abs=0.01)]
    assert proposal.chances[1] > 0.9


def test_ends_inside_accepted_copies() -> None:
    text = plainly(GREEDY)
    for end in range(20, 40):
        eos = frozenset({text[end]})
        wanted = text[: 1 + next(i for i, token in enumerate(text) if token in eos)]
        cache_ = model_of().make_cache()
        got, _ = written(
            model_of(), GREEDY, copy=True, planner=Copying(), eos_token_ids=eos, cache=cache_
        )
        assert got == wanted
        assert cache_.tokens == [*PROMPT, *wanted[:-1]]


def test_a_conversation_goes_on_from_its_text() -> None:
    """What an earlier turn held is copied in the next, also after a rewind of the cache."""
    model, planner = model_of(), Copying()
    held = model.make_cache()
    first, _ = written(model, SAMPLED, copy=True, planner=planner, cache=held)
    index = held.text_index
    assert list(index.tokens) == [*PROMPT, *first][: len(index)], "its end may be unread"
    assert len(index) > len(PROMPT) + len(first) - LOOK_RARELY
    prompt = [*PROMPT, *first[:30], 7, 7, *first[:12]]
    plain, _ = written(model, GREEDY, prompt=prompt, draft=False)
    second, stats = written(model, GREEDY, prompt=prompt, copy=True, planner=planner, cache=held)
    assert second == plain
    assert held.text_index is index
    assert list(index.tokens) == [*prompt, *second][: len(index)]
    assert len(index) > len(prompt)
    assert stats.accepted_copies > 0


def test_an_abandoned_text_leaves_the_cache_as_it_should_be() -> None:
    model, held = model_of(), model_of().make_cache()
    stream = decode(model, PROMPT, DecodingConfig(60, copy=True), cache=held, planner=Copying())
    taken = [next(stream).token for _ in range(17)]
    stream.close()
    assert held.tokens == [*PROMPT, *taken[:-1]]
    text, _ = written(model, GREEDY, copy=True, planner=Copying(), cache=held)
    assert text == plainly(GREEDY)


@pytest.mark.parametrize("kind", PLANNED)
@SAMPLINGS
def test_texts_of_a_batch_copy_each_its_own(kind: str, sampling: SamplingConfig) -> None:
    head, planner = PLANNED[kind]()
    prompts = [PROMPT, models.prompt_of(5, seed=1), models.prompt_of(30, seed=2)]
    wanted = [
        written(model_of(), sampling, prompt=prompt, max_tokens=40, draft=False)[0]
        for prompt in prompts
    ]
    engine = Engine(model_of(head), planner=planner)
    config = DecodingConfig(40, sampling, copy=True)
    stats = [AcceptanceStats() for _ in prompts]
    numbers = [
        engine.add(prompt, config, stats=own) for prompt, own in zip(prompts, stats, strict=True)
    ]
    texts: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, NewToken):
                texts[event.sequence].append(event.decoded.token)
    assert [texts[number] for number in numbers] == wanted
    if sampling == GREEDY:
        assert all(own.accepted_copies > 0 for own in stats)


@pytest.mark.parametrize(
    "name", ["falcon_h1", "qwen3_next", "lfm2", "rwkv7", "longcat_flash_ngram", "gemma3_text"]
)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_other_architectures_copy_too(name: str, sampling: SamplingConfig) -> None:
    known = models.ARCHITECTURES
    model = SpeculativeModel((models if name in known else architectures).build(name))
    prompt = models.prompt_of(6) * 3
    plain, _ = written(model, sampling, prompt=prompt, max_tokens=30, draft=False)
    # What comes is in the prompt already, so that much of it can be copied.
    prompt = [*prompt, *plain, *prompt]
    plain, _ = written(model, sampling, prompt=prompt, max_tokens=30, draft=False)
    copied, stats = written(
        model, sampling, prompt=prompt, max_tokens=30, copy=True, planner=Copying()
    )
    assert copied == plain
    assert stats.drafted > 0


def test_a_cache_that_cannot_be_given_back_is_not_drafted_in() -> None:
    options = {"cache_options": CacheOptions(max_kv_size=32)}
    model, prompt = SpeculativeModel(models.shared("qwen2")), PROMPT * 3
    plain, _ = written(model, GREEDY, prompt=prompt, draft=False, **options)
    text, stats = written(model, GREEDY, prompt=prompt, copy=True, planner=Copying(), **options)
    assert text == plain
    assert stats.drafted == 0


def test_tokens_say_where_they_come_from() -> None:
    config = DecodingConfig(60, copy=True)
    tokens = list(decode(model_of(), PROMPT, config, planner=Copying()))
    sources = [decoded.source for decoded in tokens]
    assert sources[0] == "own"
    assert set(sources) == {"own", "copied"}
    assert all(decoded.from_draft == (decoded.source != "own") for decoded in tokens)
