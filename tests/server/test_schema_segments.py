"""Answers that follow a schema, taken apart: markers within JSON are text."""

from __future__ import annotations

import json
from itertools import cycle
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.engine.step import TokenSource
from mlx_redrafter.server.protocol.answer import Answer, Text
from mlx_redrafter.server.work.answering import Answering, Job
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.schema_segments import SchemaSegments
from mlx_redrafter.server.work.sequences import Decoding, NewToken
from mlx_redrafter.text.course import Course
from mlx_redrafter.text.passages import parse_answer

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look"}}
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_call>{}</tool_call>"]
CALL = '<tool_call>{"name": "look", "arguments": {"at": "</think>"}}</tool_call>'


def answered(
    tokenizer: TokenizerWrapper,
    text: str,
    *,
    thinks: bool = False,
    calls: bool = False,
    stops: tuple[str, ...] = (),
    reason: str = "stop",
) -> Answer:
    """The whole of an answer that the engine writes so."""
    prompt = tokenizer.encode("question<think>" if thinks else "question", add_special_tokens=False)
    tools = (TOOL,) if calls else ()
    encoded = Encoded(prompt, "reasoning" if thinks else "normal", tools=tools)
    job = Job(0, encoded, Decoding(prompt, 999, {}, schema="{}", calls=calls), stops, trace=True)
    answering, whole = Answering(job, tokenizer, dict), Answer()
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    ids += [tokenizer.eos_token_id] if reason == "stop" else []
    sources: cycle[TokenSource] = cycle(("own", "guessed", "copied"))
    for place, token in enumerate(ids, start=1):
        ended = reason if place == len(ids) else None
        for event in answering.token(NewToken(0, token, next(sources), ended)):
            whole.add(event)
    assert "".join(piece.text for piece in whole.pieces if whole.tool_calls == []) in (
        "" if whole.tool_calls else whole.reasoning + whole.text,
    )
    return whole


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("calls", [True, False])
def test_markers_within_json_are_text(
    tokenizer: TokenizerWrapper, marker: str, calls: bool
) -> None:
    said = json.dumps({"it": f"{marker} naïve 😀 {marker}", marker: [marker]}, ensure_ascii=False)
    for before in ("", "\n"):
        whole = answered(tokenizer, before + said, calls=calls)
        assert (whole.text, whole.reasoning, whole.tool_calls) == (before + said, "", [])
        thinking = answered(tokenizer, f"Hm.</think>{before}{said}", thinks=True, calls=calls)
        assert (thinking.text, thinking.reasoning) == (before + said, "Hm.")
        assert thinking.tool_calls == []
        assert thinking.end.reason == "stop"
        assert thinking.end.usage.reasoning == len(
            tokenizer.encode("Hm.", add_special_tokens=False)
        )
    prompt = tokenizer.encode("question<think>", add_special_tokens=False)
    text, tools = f"Hm.</think>{said}", [TOOL] if calls else None
    parsed = parse_answer(tokenizer, text, prompt=prompt, tools=tools, follows_schema=True)
    assert (parsed.text, parsed.thoughts, parsed.tool_calls) == (said, "Hm.", ())


def test_markers_within_thoughts_are_thoughts(tokenizer: TokenizerWrapper) -> None:
    for calls in (True, False):
        thoughts = "Use <tool_call>x</tool_call> or <think>?"
        whole = answered(tokenizer, thoughts + '</think>"a"', thinks=True, calls=calls)
        assert (whole.reasoning, whole.text, whole.tool_calls) == (thoughts, '"a"', [])


@pytest.mark.parametrize("thinks", [True, False])
def test_the_call_that_was_let_in_is_one(tokenizer: TokenizerWrapper, thinks: bool) -> None:
    before = "Hm.</think>" if thinks else ""
    whole = answered(tokenizer, before + CALL, thinks=thinks, calls=True)
    (call,) = whole.tool_calls
    assert json.loads(call.arguments) == {"at": "</think>"}
    assert (whole.text, whole.reasoning) == ("", "Hm." if thinks else "")
    assert whole.end.reason == "tool_calls"
    text = before + CALL
    prompt = tokenizer.encode("question" + "<think>" * thinks, add_special_tokens=False)
    parsed = parse_answer(tokenizer, text, prompt=prompt, tools=[TOOL], follows_schema=True)
    assert [one["arguments"] for one in parsed.tool_calls] == [{"at": "</think>"}]
    assert (parsed.text, parsed.thoughts) == ("", "Hm." if thinks else "")


@pytest.mark.parametrize("text", ["<tool_", '<tool_call>{"name": "look"', "<tool_call>"])
def test_a_call_that_is_cut_off_is_text(tokenizer: TokenizerWrapper, text: str) -> None:
    whole = answered(tokenizer, text, calls=True, reason="length")
    assert (whole.text, whole.tool_calls) == (text, [])


def test_thoughts_that_are_cut_off_are_thoughts(tokenizer: TokenizerWrapper) -> None:
    whole = answered(tokenizer, "Is it </thi", thinks=True, reason="length")
    assert (whole.text, whole.reasoning) == ("", "Is it </thi")


def test_stop_strings_cut_json(tokenizer: TokenizerWrapper) -> None:
    whole = answered(tokenizer, 'Hm, "b".</think>["a", "b"]', thinks=True, stops=('"a", "b"',))
    assert (whole.text, whole.reasoning, whole.end.stop) == ("[", 'Hm, "b".', '"a", "b"')


def test_marks_of_several_tokens_are_found_by_their_tokens(tokenizer: TokenizerWrapper) -> None:
    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    end = tokens("the end")
    assert len(end) > 1
    segments = SchemaSegments(tokenizer, 0, [], Course("thinks", end))
    parts = []
    for token in tokens("the dog then the end") + tokens("the end"):
        text = tokenizer.decode([token])
        segments.follow(token, len(text))
        parts += segments.feed(text, "own")
    parts += segments.finish()
    whole = Answer()
    for part in parts:
        assert isinstance(part, Text)
        whole.add(part)
    assert whole.reasoning + whole.text == "the dog then the endthe end".replace("the end", "", 1)
