"""Answers taken apart: headers, calls that were cut off, and who proposed each character."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import glm47, mistral, muse_spark

from mlx_redrafter.engine.step import TokenSource
from mlx_redrafter.server.protocol.answer import Answer, Event, Finished, Text, ToolCall
from mlx_redrafter.server.work.answering import Answering, Job
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.segments import Segments
from mlx_redrafter.server.work.sequences import Decoding, NewToken
from mlx_redrafter.text.passages import Passages, parse_answer

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look"}}
CUT = "look\n<arg_key>at</arg_key>\n<arg_value>dog</arg_value>\n<arg_key>only</arg_key>"
SOURCES: tuple[TokenSource, ...] = ("own", "guessed", "copied")


def fed(tokenizer: TokenizerWrapper, *pieces: tuple[str, TokenSource]) -> list[Text]:
    segments = Segments(tokenizer, 0, [])
    made = [part for text, source in pieces for part in segments.feed(text, source)]
    return [part for part in [*made, *segments.finish()] if isinstance(part, Text)]


def calling(
    tokenizer: TokenizerWrapper, parser: Any, form: dict[str, Any] | None = None
) -> TokenizerWrapper:
    """The tokenizer of a model that calls tools in the format of a parser of mlx-lm's."""
    return TokenizerWrapper(
        tokenizer._tokenizer,
        response_format=form,
        tool_parser=parser.parse_tool_call,
        tool_call_start=parser.tool_call_start,
        tool_call_end=parser.tool_call_end,
    )


def test_headers_of_messages_are_not_said(tokenizer: TokenizerWrapper) -> None:
    """Muse Spark writes one before each of an answer's parts, and the template another."""
    call = '<atem:function_calls><atem:invoke name="look"></atem:invoke></atem:function_calls>'
    text = (
        "to=self<|message|>Hm.<|eom|>\n<|start|>assistant to=commentary<|message|>I look.<|eom|>"
        f"<|start|>assistant to=look<|message|>{call}<|eom|>"
        "<|start|>assistant to=user<|message|>Yes.<|eom|><|start|>assist"
    )
    muse = calling(tokenizer, muse_spark, RESPONSE_FORMAT)
    for size in (1, 7, 1000):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        segments = Segments(muse, 0, [TOOL], "header")
        whole = Answer()
        for part in (p for piece in pieces for p in segments.feed(piece, "own")):
            whole.add(part)
        for part in segments.finish():
            whole.add(part)
        assert (whole.reasoning, whole.text) == ("Hm.", "I look.Yes.")
        assert [called.name for called in whole.tool_calls] == ["look"]
    parsed = parse_answer(muse, text)
    assert (parsed.thoughts, parsed.text, len(parsed.tool_calls)) == ("Hm.", "I look.Yes.", 1)


def sources(parts: list[Text]) -> list[tuple[str, TokenSource]]:
    """Each character with its source."""
    for part in parts:
        assert "".join(piece.text for piece in part.pieces) == part.text
    return [(one, piece.source) for part in parts for piece in part.pieces for one in piece.text]


@pytest.mark.parametrize("word", ["think", "t", ">", "<"])
def test_text_that_reads_like_a_part_of_the_marker_before_it(
    tokenizer: TokenizerWrapper, word: str
) -> None:
    parts = fed(tokenizer, ("<think>", "own"), (word, "guessed"), ("</think>", "own"))
    assert [(part.text, part.reasoning) for part in parts] == [(word, True)]
    assert sources(parts) == [(letter, "guessed") for letter in word]


def test_text_that_reads_like_a_part_of_the_call_before_it(tokenizer: TokenizerWrapper) -> None:
    """A call that nobody offered is text, whose source is not told apart."""
    parts = fed(tokenizer, ("<tool_call>a b</tool_call>", "own"), (" b", "copied"))
    assert sources(parts)[-2:] == [(" ", "copied"), ("b", "copied")]


@pytest.mark.parametrize("size", [2, 3, 7, 40])
def test_sources_do_not_depend_on_what_else_comes_at_once(
    tokenizer: TokenizerWrapper, size: int
) -> None:
    """As character by character, also where a piece holds several markers."""
    text = "<<think>t<</think><think>hi</thi</think>think<think>"
    starts = range(0, len(text), size)
    pieces = [(text[at : at + size], who) for at, who in zip(starts, cycle(SOURCES), strict=False)]
    letters = [(letter, who) for piece, who in pieces for letter in piece]
    assert sources(fed(tokenizer, *pieces)) == sources(fed(tokenizer, *letters))


# ---- headers that are none


@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_answer_without_its_header_is_said(tokenizer: TokenizerWrapper, size: int) -> None:
    muse = calling(tokenizer, muse_spark, RESPONSE_FORMAT)
    text = "It is blue, to"  # which may begin a marker
    segments = Segments(muse, 0, [], "header")
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    parts = [*(p for piece in pieces for p in segments.feed(piece, "own")), *segments.finish()]
    assert "".join(p.text for p in parts if isinstance(p, Text)) == text
    assert parse_answer(muse, text).text == text


@pytest.mark.parametrize("text", ["to=us", "\n", "to=self<|message|>Hm.<|eom|><|start|>assistant"])
def test_the_beginning_of_a_header_is_not_said(tokenizer: TokenizerWrapper, text: str) -> None:
    muse = calling(tokenizer, muse_spark, RESPONSE_FORMAT)
    segments = Segments(muse, 0, [], "header")
    parts = [*segments.feed(text, "own"), *segments.finish(cut=True)]
    assert [p.text for p in parts if isinstance(p, Text) and not p.reasoning] == []
    assert parse_answer(muse, text).text == ""


def test_an_answer_without_its_header_is_gone_on_with(tokenizer: TokenizerWrapper) -> None:
    muse = calling(tokenizer, muse_spark, RESPONSE_FORMAT)
    passages = Passages(muse, begun="It is t")
    given = [*passages.feed("o=be blue"), *passages.flush()]
    assert [(part.text, part.kind) for part in given] == [("o=be blue", "normal")]


# ---- calls that were cut off


def answered(tokenizer: TokenizerWrapper, text: str, reason: Any, *stops: str) -> list[Event]:
    """The events of an answer that ends so, or with a stop string before."""
    job = Job(0, Encoded([1], "normal", tools=(TOOL,)), Decoding([1], 99, {}), stops)
    answering = Answering(job, tokenizer, dict)
    events: list[Event] = []
    ids = tokenizer.encode(text, add_special_tokens=False)
    ended = [*ids, tokenizer.eos_token_id] if reason == "stop" else ids
    for place, token in enumerate(ended, start=1):
        last = reason if place == len(ended) else None
        events += answering.token(NewToken(0, token, "own", last))
    return events


def calls_of(events: list[Event]) -> list[str]:
    return [event.arguments for event in events if isinstance(event, ToolCall)]


@pytest.mark.parametrize(
    ("reason", "stops", "told"),
    [("length", (), "length"), ("stop", ("<arg_key>only",), "stop_string")],
)
def test_a_call_that_was_cut_off_is_text(
    tokenizer: TokenizerWrapper, reason: str, stops: tuple[str, ...], told: str
) -> None:
    """What is missing may be all that keeps it from harm; GLM's parser reads what is there."""
    glm = calling(tokenizer, glm47)
    events = answered(glm, f"I look.<tool_call>{CUT}", reason, *stops)
    said = "".join(event.text for event in events if isinstance(event, Text))
    assert said.startswith("I look.<tool_call>look\n<arg_key>at</arg_key>")
    assert calls_of(events) == []
    assert [event.reason for event in events if isinstance(event, Finished)] == [told]


def test_a_call_that_ends_with_the_answer_is_one(tokenizer: TokenizerWrapper) -> None:
    glm = calling(tokenizer, glm47)
    assert calls_of(answered(glm, f"<tool_call>{CUT}", "stop")) == ['{"at": "dog"}']
    whole = f"<tool_call>{CUT}</tool_call>"
    assert calls_of(answered(glm, whole, "stop", "</tool_call>")) == ['{"at": "dog"}']
    bare = '[TOOL_CALLS]look[ARGS]{"at": "dog"}'
    assert calls_of(answered(calling(tokenizer, mistral), bare, "length")) == ['{"at": "dog"}']


def test_a_call_without_its_end_is_text_of_a_parsed_answer(tokenizer: TokenizerWrapper) -> None:
    glm = calling(tokenizer, glm47)
    whole = f"<tool_call>{CUT}</tool_call>"
    for cut in (CUT, f"{CUT}</tool_"):
        parsed = parse_answer(glm, f"{whole}<tool_call>{cut}", tools=[TOOL])
        assert (len(parsed.tool_calls), parsed.text) == (1, cut)
    assert len(parse_answer(glm, f"{whole}<tool_call>", tools=[TOOL]).tool_calls) == 1
    bare = '[TOOL_CALLS]look[ARGS]{"at": "dog"}'
    assert len(parse_answer(calling(tokenizer, mistral), bare, tools=[TOOL]).tool_calls) == 1
