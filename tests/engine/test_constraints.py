"""Constraints: what may follow each node of a tree, asked on the host while logits are computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from thread_texts import model_of

import models
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.batch_decoder import BatchDecoder
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree, HostTree

PROMPT = models.prompt_of(7)
TOKENS = 24
EVERY = 5
POISON = 63


class Sums:
    """Allows the tokens that bring the sum of the answer so far to its length, modulo ``EVERY``.

    So what may follow a node depends on its whole path and on the text before.
    """

    def __init__(self) -> None:
        self.texts: list[list[int]] = []
        self.nodes = 0

    def allowed(
        self, text: Sequence[int], tree: HostTree, vocab_size: int
    ) -> npt.NDArray[np.bool_]:
        said = [*text, tree.tokens[0]]
        last = self.texts[-1] if self.texts else PROMPT
        assert said[: len(last)] == last
        self.texts.append(said)
        self.nodes += len(tree.tokens) - 1
        rows = []
        for node in range(len(tree.tokens)):
            path = said + [tree.tokens[place] for place in tree.path(node)[1:]]
            answer = path[len(PROMPT) :]
            rest = (len(answer) - sum(answer)) % EVERY
            rows.append(np.arange(vocab_size) % EVERY == rest)
        return np.array(rows)

    def failure(self, text: Sequence[int]) -> RedrafterError | None:
        """Something may follow always."""


class Ending(Sums):
    """As long as the answer is short; then nothing may follow."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.failed: list[list[int]] = []

    def allowed(
        self, text: Sequence[int], tree: HostTree, vocab_size: int
    ) -> npt.NDArray[np.bool_]:
        rows = super().allowed(text, tree, vocab_size)
        said = len(text) + 1 - len(PROMPT)
        rows[[said + depth >= self.most for depth in tree.depths]] = False
        return rows

    def failure(self, text: Sequence[int]) -> RedrafterError | None:
        self.failed.append(list(text))
        return RedrafterError("There is nothing more.")


def config_of(**options: Any) -> DecodingConfig:
    return DecodingConfig(TOKENS, constraint=Sums(), **options)


def ids(
    model: SpeculativeModel, config: DecodingConfig, prompt: Sequence[int] = PROMPT
) -> list[int]:
    return [one.token for one in decode(model, prompt, config)]


def is_allowed(answer: list[int]) -> bool:
    sums = [(place - sum(answer[:place])) % EVERY for place in range(len(answer))]
    return [token % EVERY for token in answer] == sums


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_drafted_text_is_plain_text_under_one(name: str, temperature: float) -> None:
    target = models.mamba() if name == "mamba" else models.shared(name)
    options: dict[str, Any] = {"sampling": SamplingConfig(temperature, seed=3, logprobs=2)}
    plain = list(decode(SpeculativeModel(target), PROMPT, config_of(draft=False, **options)))
    answer = [one.token for one in plain]
    assert is_allowed(answer)
    free = [
        one.token
        for one in decode(SpeculativeModel(target), PROMPT, DecodingConfig(TOKENS, **options))
    ]
    assert free != answer
    for seed in range(4):
        source = models.ScriptedSource(PROMPT + answer, seed=seed, siblings=2 * seed)
        config = config_of(**options)
        made = list(decode(SpeculativeModel(target, source), PROMPT, config))
        assert [one.token for one in made] == answer
        assert sum(one.from_draft for one in made) > TOKENS // 4
        assert isinstance(config.constraint, Sums)
        assert config.constraint.nodes > TOKENS // 4
        for one, wanted in zip(made, plain, strict=True):
            assert one.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert [token for token, _ in one.top_logprobs] == [t for t, _ in wanted.top_logprobs]


@pytest.mark.parametrize("make", [models.build_drafter, models.memory_drafter])
def test_heads_and_copies_write_the_same_text(make: Any) -> None:
    target = models.shared("llama")
    plain = ids(SpeculativeModel(target), config_of(draft=False))
    for shape in (BeamShape(1, 3), BeamShape(3, 4, 7)):
        assert ids(SpeculativeModel(target, make()), config_of(beam=shape, copy=True)) == plain


def test_each_text_of_a_batch_has_its_own() -> None:
    target = models.shared("llama")
    plain = ids(SpeculativeModel(target), config_of(draft=False))
    free = ids(SpeculativeModel(target), DecodingConfig(TOKENS))
    drafting = SpeculativeModel(target, models.build_drafter())
    configs = [config_of(copy=True), DecodingConfig(TOKENS, copy=True), config_of()]
    made: list[list[int]] = [[], [], []]
    for place, one in BatchDecoder(drafting, [PROMPT] * 3, configs):
        made[place].append(one.token)
    assert made == [plain, free, plain]


def test_it_has_its_say_after_processors() -> None:
    """These are still asked once for each token, and cannot bring back what is not allowed."""
    target = models.shared("llama")
    heard: list[int] = []

    def prefers(tokens: mx.array, logits: mx.array) -> mx.array:
        heard.append(tokens.size)
        return logits + 50.0 * (mx.arange(logits.shape[-1]) == len(heard) % 11)

    def told(**options: Any) -> list[int]:
        heard.clear()
        config = config_of(logits_processors=(prefers,), **options)
        made = ids(SpeculativeModel(target, models.build_drafter()), config)
        assert heard == list(range(len(PROMPT), len(PROMPT) + TOKENS))
        return made

    plain = told(draft=False)
    assert is_allowed(plain)
    assert told(beam=BeamShape(3, 4)) == plain


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["llama", "mamba"])
@pytest.mark.parametrize("most", [0, 1, 7])
def test_where_nothing_may_follow_the_text_fails(name: str, temperature: float, most: int) -> None:
    """Behind all that it was until then; drafted or not, and whatever is reported with it."""
    target = models.mamba() if name == "mamba" else models.shared(name)
    options: dict[str, Any] = {"sampling": SamplingConfig(temperature, seed=3, logprobs=2)}
    whole = ids(SpeculativeModel(target), config_of(draft=False, **options))
    for source in (None, models.ScriptedSource(PROMPT + whole, full=True)):
        model = SpeculativeModel(target, source)
        cache = model.make_cache()
        config = replace(config_of(**options), constraint=Ending(most))
        made: list[int] = []
        text = decode(model, PROMPT, config, cache=cache)
        with pytest.raises(RedrafterError, match="nothing more"):
            made.extend(one.token for one in text if one.finish_reason is None)
        assert made == whole[:most]
        assert isinstance(config.constraint, Ending)
        assert config.constraint.failed == [PROMPT + made]
        assert cache.tokens == (PROMPT + made)[: len(cache)]
        again = decode(model, PROMPT + made, config_of(draft=False), cache=cache)
        assert next(again).token == ids(SpeculativeModel(target), config_of(), PROMPT + made)[0]


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
@pytest.mark.parametrize("place", [0, 1])
def test_the_others_of_a_batch_go_on(name: str, place: int) -> None:
    drafting = model_of(name)
    target = drafting.target
    free = ids(SpeculativeModel(target), DecodingConfig(TOKENS))
    configs = [DecodingConfig(TOKENS, copy=True) for _ in range(3)]
    configs[place] = DecodingConfig(TOKENS, constraint=Ending(5))
    made: list[list[int]] = [[], [], []]

    def decode_all() -> None:
        for number, one in BatchDecoder(drafting, [PROMPT] * 3, configs):
            made[number].append(one.token)

    with pytest.raises(RedrafterError, match="nothing more"):
        decode_all()
    whole = ids(SpeculativeModel(target), config_of())
    wanted = [whole[:5] if number == place else free for number in range(3)]
    assert made == wanted


@pytest.mark.parametrize("constraint", [None, Sums])
@pytest.mark.parametrize("draft", [True, False])
def test_processors_that_leave_nothing_are_told(constraint: Any, draft: bool) -> None:
    calls = itertools.count()

    def bans(_tokens: mx.array, logits: mx.array) -> mx.array:
        return logits - (mx.inf if next(calls) == 3 else 0.0)

    config = DecodingConfig(
        TOKENS, logits_processors=(bans,), constraint=constraint and constraint(), draft=draft
    )
    made: list[int] = []
    model = SpeculativeModel(models.shared("llama"), models.build_drafter())
    with pytest.raises(RedrafterError, match="let them keep one"):
        made.extend(one.token for one in decode(model, PROMPT, config))
    assert len(made) == 3


class Poisoned(models.ScriptedSource):
    """The truth, and beside it a branch of a token whose embedding is not a number."""

    def __call__(self, state: DraftInput) -> DraftTree:
        tree = super().__call__(state).read()
        return DraftTree.from_parents([*tree.tokens, POISON], [*tree.parents, 0])


def test_a_step_that_is_taken_again_is_asked_about_again() -> None:
    target = models.build("llama")
    target.model.embed_tokens.weight[POISON] = mx.nan
    prompt = [token % POISON for token in PROMPT]
    assert prompt == PROMPT
    plain = ids(SpeculativeModel(target), config_of(draft=False))
    assert is_allowed(plain)
    assert POISON not in plain
    config = config_of()
    source = Poisoned(PROMPT + plain, full=True, siblings=0)
    assert ids(SpeculativeModel(target, source), config) == plain
    assert isinstance(config.constraint, Sums)
    texts = config.constraint.texts
    assert any(text == again for text, again in itertools.pairwise(texts))


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(RedrafterError, match="constraint is 3, but has to say which tokens"):
        DecodingConfig(TOKENS, constraint=3)  # type: ignore[arg-type]
