from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bundles
import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import stream_generate as mlx_lm_stream
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tokenizer_utils import TokenizerWrapper, load

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.generate import generate, stream_generate
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.text.responses import GenerationResponse, StopScanner

# Every byte of it is its own token, and none occurs twice, so a chain of tokens can write it.
TEXT = "Hm: 漢😀é_Żx=7!"
PROMPT = "?"


def writer(tokenizer: TokenizerWrapper, text: str = TEXT) -> Model:
    """A model that writes ``text`` after PROMPT, then ends: each token names the next."""
    line = [*tokenizer.encode(PROMPT + text), tokenizer.eos_token_id]
    assert len(set(line)) == len(line), "a token occurs twice"
    size = len(tokenizer.get_vocab())
    args = ModelArgs(
        model_type="llama",
        hidden_size=size + size % 2,
        num_hidden_layers=1,
        intermediate_size=4,
        num_attention_heads=1,
        rms_norm_eps=1e-5,
        vocab_size=size,
        tie_word_embeddings=False,
    )
    model = Model(args)
    layer = model.model.layers[0]
    for silent in (layer.self_attn.o_proj, layer.mlp.down_proj):
        silent.weight = mx.zeros_like(silent.weight)
    model.model.embed_tokens.weight = mx.eye(size, args.hidden_size)
    rows = mx.zeros((size, args.hidden_size))
    for before, after in pairwise(line):
        rows[after, before] = 1.0
    model.lm_head.weight = rows
    return model


class Oracle(models.ScriptedSource):
    """Drafts what the writer will write."""

    def __init__(self, tokenizer: TokenizerWrapper, text: str = TEXT, depth: int = 5):
        line = [*tokenizer.encode(PROMPT + text), tokenizer.eos_token_id, 1, 2, 3, 4, 5, 6, 7]
        super().__init__(line, full=True, max_depth=depth, vocab_size=300)


def writing(tokenizer: TokenizerWrapper, kind: str) -> SpeculativeModel:
    return SpeculativeModel(writer(tokenizer), Oracle(tokenizer) if kind == "drafted" else None)


@pytest.fixture(scope="module")
def babbler(tokenizer: TokenizerWrapper) -> nn.Module:
    """A random model over the tokenizer's vocabulary."""
    return models.build("llama", vocab_size=len(tokenizer.get_vocab()))


def texts(responses: Iterator[GenerationResponse]) -> list[str]:
    return [response.text for response in responses]


KIND = pytest.mark.parametrize("kind", ["plain", "drafted"])


# Characters


@KIND
def test_characters_of_several_tokens_come_whole(kind: str, tokenizer: TokenizerWrapper) -> None:
    model = writing(tokenizer, kind)
    responses = list(stream_generate(model, tokenizer, PROMPT))
    assert "".join(response.text for response in responses) == TEXT
    for response in responses:
        assert "\ufffd" not in response.text
    assert sum(response.text == "" for response in responses) >= 7, "bytes within characters"
    assert responses[-1].finish_reason == "stop"
    assert responses[-1].token == tokenizer.eos_token_id
    assert len(responses) == len(tokenizer.encode(TEXT)) + 1
    assert generate(writing(tokenizer, kind), tokenizer, PROMPT) == TEXT


@KIND
def test_every_beginning_is_mlx_lms(kind: str, tokenizer: TokenizerWrapper) -> None:
    """Cut anywhere, in the middle of characters too, the text is what mlx-lm gives."""
    model = writer(tokenizer)
    for max_tokens in range(1, len(tokenizer.encode(TEXT)) + 3):
        theirs = mlx_lm_stream(model, tokenizer, PROMPT, max_tokens=max_tokens)
        wanted = "".join(response.text for response in theirs)
        mine = generate(writing(tokenizer, kind), tokenizer, PROMPT, max_tokens=max_tokens)
        assert mine == wanted


@KIND
def test_random_bytes_too(kind: str, tokenizer: TokenizerWrapper, babbler: nn.Module) -> None:
    wanted = "".join(
        response.text for response in mlx_lm_stream(babbler, tokenizer, "the dog", max_tokens=40)
    )
    drafter = models.build_drafter(vocab_size=len(tokenizer.get_vocab()))
    model = SpeculativeModel(babbler, drafter if kind == "drafted" else None)
    assert generate(model, tokenizer, "the dog", max_tokens=40) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 0},
        {"temperature": 1.0, "repetition_penalty": 1.4, "presence_penalty": 0.5, "seed": 0},
        {"frequency_penalty": 0.7, "frequency_context_size": 5},
    ],
    ids=str,
)
def test_drafted_text_is_plain_text(
    options: dict[str, Any], tokenizer: TokenizerWrapper, babbler: nn.Module
) -> None:
    drafter = models.build_drafter(vocab_size=len(tokenizer.get_vocab()))
    model = SpeculativeModel(babbler, drafter)
    plain = generate(model, tokenizer, "a drafter", draft=False, max_tokens=25, **options)
    for shape in ({}, {"beam_width": 2, "beam_length": 3}, {"node_budget": 3}):
        drafted = generate(model, tokenizer, "a drafter", max_tokens=25, **shape, **options)
        assert drafted == plain
    if options.get("temperature"):
        other = generate(model, tokenizer, "a drafter", max_tokens=25, **{**options, "seed": 99})
        assert other != plain


# Stop strings


@KIND
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("漢", "Hm: "),
        ("m: 漢😀", "H"),
        ("H", ""),
        ("é_Ż", "Hm: 漢😀"),
        ("!", "Hm: 漢😀é_Żx=7"),
        (["=7", "_", "zzz"], "Hm: 漢😀é"),
        (["absent"], TEXT),
        ("7!!", TEXT),
        ("Hm: 漢😀é_Żx=7!?", TEXT),
        ([], TEXT),
        ((), TEXT),
    ],
    ids=str,
)
def test_stop_strings(
    kind: str, stop: str | list[str], text: str, tokenizer: TokenizerWrapper
) -> None:
    model = writing(tokenizer, kind)
    cache = model.make_cache()
    responses = list(stream_generate(model, tokenizer, PROMPT, stop=stop, cache=cache))
    assert "".join(response.text for response in responses) == text
    assert [response.finish_reason for response in responses[:-1]] == [None] * (len(responses) - 1)
    assert responses[-1].finish_reason == "stop"
    # Held back while they might have been a stop string's beginning, but never given out in part.
    shown = ""
    for response in responses:
        shown += response.text
        assert text.startswith(shown)
    held = [*tokenizer.encode(PROMPT), *(response.token for response in responses)][:-1]
    assert cache.tokens == held
    assert {layer.offset for layer in cache.layers} == {len(held)}
    if text != TEXT:
        assert responses[-1].token != tokenizer.eos_token_id


def test_what_was_held_back_comes_with_the_last_token(tokenizer: TokenizerWrapper) -> None:
    model = writing(tokenizer, "plain")
    responses = list(stream_generate(model, tokenizer, PROMPT, stop="m: 漢?", max_tokens=4))
    assert [response.text for response in responses] == ["H", "", "", "m: "]
    assert responses[-1].finish_reason == "length"


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(
    text=st.text("ab", max_size=12),
    stop=st.text("ab", min_size=1, max_size=4),
    cuts=st.sets(st.integers(1, 11)),
)
def test_scanner_finds_a_string_wherever_the_pieces_end(
    text: str, stop: str, cuts: set[int]
) -> None:
    scanner, shown, found = StopScanner([stop]), "", False
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    for start, end in pairwise(edges):
        piece, found = scanner.feed(text[start:end])
        shown += piece
        assert len(text[:end]) - len(shown) < len(stop) or found, "no more held than needed"
        if found:
            break
    assert found == (stop in text)
    assert shown + ("" if found else scanner.flush()) == text.split(stop)[0]
    assert scanner.flush() == ""


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(
    text=st.text("ab", max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_scanner_with_several_strings(text: str, stops: list[str]) -> None:
    """Character by character: the first string to be complete ends the text."""
    scanner, shown = StopScanner(stops), ""
    for index, character in enumerate(text):
        piece, found = scanner.feed(character)
        shown += piece
        complete = [stop for stop in stops if text[: index + 1].endswith(stop)]
        assert found == bool(complete)
        if found:
            assert shown == text[: index + 1 - max(len(stop) for stop in complete)]
            break
    else:
        assert shown + scanner.flush() == text
    assert not any(stop in shown for stop in stops)


def test_scanner_without_strings_holds_nothing() -> None:
    scanner = StopScanner([])
    assert scanner.feed("abc") == ("abc", False)
    assert scanner.flush() == ""


# Prompts


def test_text_is_encoded_as_mlx_lm_does(tokenizer: TokenizerWrapper) -> None:
    assert encode_prompt(tokenizer, "the dog") == tokenizer.encode("the dog")


def test_ids_stay_as_they_are(tokenizer: TokenizerWrapper) -> None:
    assert encode_prompt(tokenizer, [5, 6]) == [5, 6]
    assert encode_prompt(tokenizer, (5, 6)) == [5, 6]
    assert encode_prompt(tokenizer, mx.array([5, 6])) == [5, 6]


def test_messages_go_through_the_template(tokenizer: TokenizerWrapper) -> None:
    messages = [
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "fox"},
        {"role": "user", "content": "do"},
    ]
    text = "<|user|>the dog<|end|><|assistant|>fox<|end|><|user|>do<|end|><|assistant|>"
    assert encode_prompt(tokenizer, messages) == tokenizer.encode(text, add_special_tokens=False)


def test_the_three_kinds_of_prompt_give_the_same(
    tokenizer: TokenizerWrapper, babbler: nn.Module
) -> None:
    model = SpeculativeModel(babbler)
    text = "<|user|>the dog<|end|><|assistant|>"
    prompts: list[Any] = [
        text,
        tokenizer.encode(text, add_special_tokens=False),
        [{"role": "user", "content": "the dog"}],
    ]
    answers = {generate(model, tokenizer, prompt, max_tokens=8) for prompt in prompts}
    assert len(answers) == 1


def test_a_second_turn_of_messages_prefills_only_what_is_new(
    tokenizer: TokenizerWrapper, babbler: nn.Module
) -> None:
    model = SpeculativeModel(babbler, models.build_drafter(vocab_size=len(tokenizer.get_vocab())))
    cache = model.make_cache()
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "the dog"}])
    answer = [
        response.token
        for response in stream_generate(model, tokenizer, ids, cache=cache, max_tokens=9)
    ]
    following = ids + answer + tokenizer.encode("<|end|><|user|>more<|end|><|assistant|>")
    told: list[tuple[int, int]] = []
    warm = generate(
        model,
        tokenizer,
        following,
        cache=cache,
        max_tokens=9,
        prompt_progress_callback=lambda *done: told.append(done),
    )
    assert told[0] == (len(ids) + len(answer) - 1, len(following))
    assert told[-1] == (len(following), len(following))
    assert warm == generate(model, tokenizer, following, max_tokens=9)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_progress_is_told_as_mlx_lm_tells_it(
    length: int, tokenizer: TokenizerWrapper, babbler: nn.Module
) -> None:
    drafter = models.build_drafter(vocab_size=len(tokenizer.get_vocab()))
    told: list[list[tuple[int, int]]] = [[], []]
    options = [
        {"prompt_progress_callback": lambda *done, seen=seen: seen.append(done)} for seen in told
    ]
    prompt, settings = models.prompt_of(length), {"max_tokens": 3, "prefill_step_size": 4}
    list(mlx_lm_stream(babbler, tokenizer, prompt, **settings, **options[0]))
    model = SpeculativeModel(babbler, drafter)
    list(stream_generate(model, tokenizer, prompt, **settings, **options[1]))
    assert told[1] == told[0]
    assert told[1][-1] == (length, length)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        (mx.array([], dtype=mx.int32), "prompt is empty"),
        ([1.5, 2.5], "has to be text"),
        (mx.array([1.5]), "has to be text"),
        (["one", "two"], "has to be text"),
        ([1, {"role": "user", "content": "x"}], "has to be text"),
        (None, "has to be text"),
        (7, "has to be text"),
        (mx.array(7), "has to be text"),
        ([5, 10_000], "outside the vocabulary"),
    ],
    ids=str,
)
def test_bad_prompts(prompt: Any, words: str, tokenizer: TokenizerWrapper) -> None:
    model = writing(tokenizer, "plain")
    with pytest.raises(RedrafterError, match=words):
        stream_generate(model, tokenizer, prompt)


def test_messages_need_a_template(tmp_path: Path) -> None:
    bundles.make_tokenizer(tmp_path)
    for path in tmp_path.glob("*template*"):
        path.unlink()
    config = tmp_path / "tokenizer_config.json"
    kept = [line for line in config.read_text().splitlines() if '"chat_template"' not in line]
    config.write_text("\n".join(kept))
    plain = load(tmp_path)
    assert not plain.has_chat_template
    with pytest.raises(RedrafterError, match="no chat template"):
        encode_prompt(plain, [{"role": "user", "content": "x"}])


def test_messages_that_the_template_refuses(tmp_path: Path) -> None:
    bundles.make_tokenizer(tmp_path)
    strict = load(tmp_path)
    strict.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(RedrafterError, match="no system role here"):
        encode_prompt(strict, [{"role": "system", "content": "x"}])


# Arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("top_p", -0.1),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 10_000),
        ("min_p", 2.0),
        ("seed", -1),
        ("repetition_penalty", -1.0),
        ("repetition_context_size", 0),
        ("beam_width", 0),
        ("beam_length", 0),
        ("beam_length", 1000),
        ("node_budget", 0),
        ("prefill_step_size", 0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
    ],
)
def test_bad_arguments_are_refused_at_once(
    name: str, value: Any, tokenizer: TokenizerWrapper
) -> None:
    """By the call itself, in one sentence that names the argument."""
    with pytest.raises(RedrafterError) as caught:
        stream_generate(writing(tokenizer, "plain"), tokenizer, PROMPT, **{name: value})
    message = str(caught.value)
    assert name.removeprefix("beam_") in message
    assert message.endswith(".")
    assert "\n" not in message


# Responses


def test_response_fields(tokenizer: TokenizerWrapper) -> None:
    responses = list(stream_generate(writing(tokenizer, "drafted"), tokenizer, PROMPT))
    assert [response.generation_tokens for response in responses] == list(
        range(1, len(responses) + 1)
    )
    assert {response.prompt_tokens for response in responses} == {1}
    assert {type(response.stats) for response in responses} == {AcceptanceStats}
    for response in responses:
        assert response.prompt_tps > 0
        assert response.generation_tps > 0
        assert response.peak_memory > 0
    assert responses[0].step is None
    assert all(response.step is not None for response in responses[1:])
    stats = responses[-1].stats
    assert stats.accepted == sum(response.from_draft for response in responses)
    assert stats.tokens == len(responses) - 1
    assert stats.tokens_per_step > 4


def test_a_prompts_time_begins_when_it_is_read(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(seconds=0.0)
    stopped = SimpleNamespace(perf_counter=lambda: clock.seconds)
    monkeypatch.setattr("mlx_redrafter.text.responses.time", stopped)
    stream = stream_generate(writing(tokenizer, "plain"), tokenizer, PROMPT)
    clock.seconds = 100.0  # in which nobody asks for a token
    assert next(stream).prompt_tps > 1


def test_from_draft_only_when_drafted(tokenizer: TokenizerWrapper) -> None:
    drafted = list(stream_generate(writing(tokenizer, "drafted"), tokenizer, PROMPT))
    # The prompt's own forward, then steps of five drafted tokens and one of the target's.
    flags = [False, *([True] * 5 + [False]) * 9]
    assert [response.from_draft for response in drafted] == flags[: len(drafted)]
    for model, draft in (
        (writing(tokenizer, "plain"), True),
        (writing(tokenizer, "drafted"), False),
    ):
        responses = list(stream_generate(model, tokenizer, PROMPT, draft=draft))
        assert not any(response.from_draft for response in responses)
        assert responses[-1].stats.drafted == 0


@pytest.mark.parametrize("taken", range(1, 9))
def test_an_abandoned_stream_leaves_the_cache_consistent(
    taken: int, tokenizer: TokenizerWrapper
) -> None:
    model = writing(tokenizer, "drafted")
    cache = model.make_cache()
    stream = stream_generate(model, tokenizer, PROMPT, cache=cache)
    got = [response.token for response in islice(stream, taken)]
    stream.close()  # type: ignore[attr-defined]
    held = [*tokenizer.encode(PROMPT), *got][:-1]
    assert cache.tokens == held
    assert {layer.offset for layer in cache.layers} == {len(held)}


def test_length_is_the_reason_at_max_tokens(tokenizer: TokenizerWrapper) -> None:
    for kind in ("plain", "drafted"):
        model = writing(tokenizer, kind)
        responses = list(stream_generate(model, tokenizer, PROMPT, max_tokens=4))
        assert [response.finish_reason for response in responses] == [None] * 3 + ["length"]
        assert "".join(response.text for response in responses) == TEXT[:4]


def test_a_planner_is_not_used_where_a_shape_is_given(tokenizer: TokenizerWrapper) -> None:
    class Refusing:
        copied = None

        @property
        def plan(self) -> StepPlan:
            raise AssertionError("asked")

        def for_batch(self, sequences: int) -> Any:
            return self

        def begin(self, cache: Any, temperature: float, *, among: bool = False) -> None:
            pass

        def observe(self, step: Any) -> None:
            raise AssertionError("told")

    model = writing(tokenizer, "drafted")
    planner: Any = Refusing()
    assert generate(model, tokenizer, PROMPT, planner=planner, beam_width=2) == TEXT
    with pytest.raises(AssertionError, match="asked"):
        generate(writing(tokenizer, "drafted"), tokenizer, PROMPT, planner=planner, copy=False)
