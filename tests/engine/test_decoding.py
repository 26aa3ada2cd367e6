"""Where texts end, go on and are interrupted; the caches afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest
from decoding_cases import (
    KINDS,
    LENGTH,
    PROMPT,
    TEXT,
    assert_consistent,
    assert_goes_on,
    config_of,
    drafting_model,
    plain,
    plain_model,
)

import models
from mlx_redrafter import sampler
from mlx_redrafter.cache.attention import TreeKVCache
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine import sequence as sequences
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode, steered
from mlx_redrafter.engine.lockstep import Alone
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.sequence import Sequence
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampler import Sampler
from mlx_redrafter.target.target import Target

# Ends


@pytest.mark.parametrize(
    ("kind", "max_tokens"),
    [
        *(("plain", max_tokens) for max_tokens in (1, 2, 3, LENGTH)),
        *(("drafted", max_tokens) for max_tokens in range(1, 14)),
        *(("beam search", max_tokens) for max_tokens in (1, 2, 7)),
    ],
)
def test_max_tokens_is_exact(kind: str, max_tokens: int) -> None:
    model = KINDS[kind]()
    cache = model.make_cache()
    decoded = list(decode(model, PROMPT, config_of(max_tokens), cache=cache))
    assert [token.token for token in decoded] == TEXT[:max_tokens]
    assert [token.finish_reason for token in decoded] == [None] * (max_tokens - 1) + ["length"]
    assert_consistent(cache, PROMPT + TEXT[: max_tokens - 1])


def ends() -> list[int]:
    """Indices in the text at which a token occurs for the first time."""
    return [index for index in range(LENGTH) if TEXT[index] not in TEXT[:index]]


def test_there_are_ends_within_accepted_runs() -> None:
    steps = {(index - 1) % 5 for index in ends() if index > 0}
    assert steps == set(range(5)), "at each place of a step that yields five tokens"


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *(("plain", end) for end in ends()[:4]),
        *(("drafted", end) for end in ends()),
        *(("beam search", end) for end in ends()[1:6:2]),
    ],
)
def test_end_of_sequence_anywhere(kind: str, end: int) -> None:
    model = KINDS[kind]()
    cache, stats = model.make_cache(), AcceptanceStats()
    config = config_of(eos_token_ids=frozenset({TEXT[end], 10_000}))
    decoded = list(decode(model, PROMPT, config, cache=cache, stats=stats))
    assert [token.token for token in decoded] == TEXT[: end + 1]
    assert [token.finish_reason for token in decoded] == [None] * end + ["stop"]
    assert_consistent(cache, PROMPT + TEXT[:end])
    assert stats.tokens == end
    assert stats.accepted == sum(token.from_draft for token in decoded)
    assert_goes_on(cache, PROMPT + TEXT[:end], [TEXT[end], 7, 3, 9])


def test_end_of_sequence_at_the_last_of_max_tokens_is_a_stop() -> None:
    end = ends()[6]
    for make in KINDS.values():
        config = config_of(end + 1, eos_token_ids=frozenset({TEXT[end]}))
        assert list(decode(make(), PROMPT, config))[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        *(("plain", taken) for taken in (1, 2, 3, 9)),
        *(("drafted", taken) for taken in range(1, 14)),
        *(("beam search", taken) for taken in (1, 2, 7)),
    ],
)
def test_abandoned_anywhere(kind: str, taken: int) -> None:
    model = KINDS[kind]()
    cache = model.make_cache()
    stream = decode(model, PROMPT, config_of(), cache=cache)
    decoded = list(islice(stream, taken))
    stream.close()  # type: ignore[attr-defined]
    assert [token.token for token in decoded] == TEXT[:taken]
    assert_consistent(cache, PROMPT + TEXT[: taken - 1])
    assert_goes_on(cache, PROMPT + TEXT[: taken - 1], [TEXT[taken - 1], 5, 6, 7])


def test_dropping_the_generator_is_enough() -> None:
    model = drafting_model()
    cache = model.make_cache()
    for decoded in decode(model, PROMPT, config_of(), cache=cache):
        if decoded.token == TEXT[7]:
            break
    del decoded
    assert_consistent(cache, PROMPT + TEXT[: TEXT.index(TEXT[7])])


def test_never_begun() -> None:
    model = plain_model()
    cache = model.make_cache()
    decode(model, PROMPT, config_of(), cache=cache).close()  # type: ignore[attr-defined]
    assert_consistent(cache, [])


def test_no_limit() -> None:
    end = ends()[8]
    config = config_of(-1, eos_token_ids=frozenset({TEXT[end]}))
    for make in (plain_model, drafting_model):
        decoded = [token.token for token in decode(make(), PROMPT, config)]
        assert decoded == TEXT[: end + 1]


# Going on from a cache


def test_several_turns_on_one_cache() -> None:
    """Drafted turns, each cut at max_tokens in the middle of a run, equal cold ones."""
    cache, conversation = plain_model().make_cache(), list(PROMPT)
    for turn in range(5):
        wanted = plain(conversation, 20)
        told: list[tuple[int, int]] = []
        stream = decode(
            drafting_model(conversation, wanted, seed=turn),
            conversation,
            config_of(9 + turn),
            cache=cache,
            progress=lambda *done, told=told: told.append(done),
        )
        answer = [decoded.token for decoded in stream]
        assert answer == wanted[: 9 + turn]
        held = len(conversation) - 1 if turn == 0 else 3
        assert told[-1][1] - told[0][0] == (held if turn == 0 else 1 + held - 1)
        conversation += answer
        assert_consistent(cache, conversation[:-1])
        conversation += models.prompt_of(3, seed=turn)


@pytest.mark.parametrize("at", [0, 1, 5, 10, 14, 20])
def test_an_edited_history_is_prefilled_from_the_first_difference(at: int) -> None:
    model = drafting_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(15), cache=cache))
    history = PROMPT + TEXT[:14]
    edited = [*history[:at], (history[at] + 1) % models.VOCAB, *history[at + 1 :], 1, 2, 3]
    assert_goes_on(cache, edited[:at], edited[at:])


def test_the_same_prompt_again_prefills_nothing() -> None:
    model = plain_model()
    cache = model.make_cache()
    for _ in range(2):
        told: list[tuple[int, int]] = []
        stream = decode(
            model,
            PROMPT,
            config_of(5),
            cache=cache,
            progress=lambda *done, told=told: told.append(done),
        )
        assert [decoded.token for decoded in stream] == TEXT[:5]
    assert told == [(len(PROMPT) - 1, len(PROMPT) - 1)]


def test_history_cut_short() -> None:
    model = plain_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(15), cache=cache))
    assert_goes_on(cache, PROMPT[:4], [PROMPT[4]])


# Interruption

# What is interrupted, and at which of its calls, before or after it did its work.
INTERRUPTIONS: list[tuple[Any, str, int]] = [
    *((Target, "prefill", n) for n in (1, 2, 3)),
    *((PromptCache, "extend", n) for n in (1, 3)),
    *((Target, "verify", n) for n in (1, 2, 4)),
    *((TreeKVCache, "update_and_fetch", n) for n in (1, 4, 7, 8, 11, 15)),
    *((TreeKVCache, "commit", n) for n in (1, 2, 4, 5)),
    *((PromptCache, "commit", n) for n in (1, 3)),
    *((Sampler, "choose", n) for n in (1, 3)),
    *((mx, "async_eval", n) for n in (1, 3)),
    *((sequences, "read_numbers", n) for n in (1, 6)),
    *((AcceptanceStats, "record", n) for n in (1, 3)),
]


def interrupting(function: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise KeyboardInterrupt
        result = function(*args, **kwargs)
        if calls == at:
            raise KeyboardInterrupt
        return result

    return wrapper


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "at"), INTERRUPTIONS, ids=[f"{name}-{at}" for _, name, at in INTERRUPTIONS]
)
@pytest.mark.parametrize("kind", ["plain", "drafted"])
def test_interrupted_anywhere(
    kind: str, owner: Any, name: str, at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS[kind]()
    cache, seen = model.make_cache(), []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupting(getattr(owner, name), at, after))
        stream = decode(model, PROMPT, config_of(prefill_step_size=4), cache=cache)
        with pytest.raises(KeyboardInterrupt):
            seen.extend(decoded.token for decoded in stream)
    assert seen == TEXT[: len(seen)]
    held = list(cache.tokens)
    if seen:
        assert held == (PROMPT + seen)[: len(held)]
        assert len(held) == len(PROMPT) + len(seen) - 1
    else:
        assert held == PROMPT[: len(held)]
        assert len(held) < len(PROMPT)
    assert_consistent(cache, held)
    assert_goes_on(cache, held, [*(PROMPT + TEXT)[len(held) :][:4], 8, 9])


def test_interrupted_in_a_second_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn's tokens stay."""
    model = plain_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(6), cache=cache))
    history = PROMPT + TEXT[:6]
    with monkeypatch.context() as patch:
        patch.setattr(Target, "prefill", interrupting(Target.prefill, 2, False))
        prompt = [*history, *models.prompt_of(9)]
        stream = decode(model, prompt, config_of(prefill_step_size=4), cache=cache)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert_consistent(cache, prompt[: len(history) - 1 + 4])
    assert_goes_on(cache, list(cache.tokens), [1, 2, 3])


def test_texts_without_drafts_do_not_ask_what_noise_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a pass over the vocabulary at each step, and concerns guesses only."""
    asked: list[int] = []
    below_best = sampler.below_best

    def counted(logits: mx.array, tokens: mx.array) -> mx.array:
        asked.append(len(tokens))
        return below_best(logits, tokens)

    monkeypatch.setattr(sampler, "below_best", counted)
    model = KINDS["drafted"]()
    assert [token.token for token in decode(model, PROMPT, config_of(draft=False))] == TEXT[:LENGTH]
    assert not asked
    assert [token.token for token in decode(model, PROMPT, config_of())] == TEXT[:LENGTH]
    assert asked


def test_other_ranks_are_told_of_no_step_that_cannot_follow() -> None:
    """They would wait in it for one that never comes."""
    told: list[str] = []

    class Steering(Alone):
        def goes_on(self) -> bool:
            told.append("goes on")
            return True

        def ends(self, handed_out: int) -> int:
            told.append("ends")
            return handed_out

    model = SpeculativeModel(models.shared("llama"))
    cache = model.make_cache()
    sequence = Sequence(model, PROMPT, DecodingConfig(9), cache=cache)
    text = steered(model, sequence, lambda _done, _total: None, Steering())
    next(text)
    next(text)
    cache.rewind(0)
    with pytest.raises(RedrafterError, match="its cache has served another text"):
        next(text)
    assert told == ["goes on", "goes on", "ends"]
