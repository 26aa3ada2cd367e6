"""What a prompt may be: text, ids of any kind of array, messages whose content is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import bundles
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import AutoTokenizer

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.passages import Passages, parse_answer
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.training.data import tokenize

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


PARTS = [{"type": "text", "text": "what does "}, {"type": "text", "text": "this do?"}]


def test_parts_of_text_are_joined_as_mlx_lms_server_does(tokenizer: TokenizerWrapper) -> None:
    assert encode_prompt(tokenizer, user(PARTS)) == encode_prompt(
        tokenizer, user("what does this do?")
    )
    assert encode_prompt(tokenizer, user(["what does ", "this do?"])) == encode_prompt(
        tokenizer, user(PARTS)
    )


def test_parts_are_joined_in_training_data_too(tokenizer: TokenizerWrapper) -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "the dog"}]}
    (row,) = tokenize([{"messages": [*user(PARTS), answer]}], tokenizer)
    assert tokenizer.decode(row.tokens[row.answer].tolist()) == "the dog<|end|>"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (user([{"type": "image_url", "image_url": {}}]), "image_url"),
        (user([{"type": "text"}]), "text"),
        (user([3]), "int"),
        (user(3), "message 1 is not text"),
        ([{"role": "user"}], "no content"),
        ([{"content": "x"}], "no role"),
        ([{"role": "assistant", "content": "x", "tool_calls": 3}], "no list of calls"),
        ([{"role": "assistant", "tool_calls": '[{"type": "function"}]'}], "no list of calls"),
        ([{"role": "assistant", "tool_calls": {"type": "function"}}], "no list of calls"),
        ([{"role": "assistant", "tool_calls": [3]}], "no list of calls"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": np.array([1, 2])}],
            "no list of calls",
        ),
        ([{"role": "assistant", "content": "x", "tool_calls": mx.array([])}], "no list of calls"),
        (user("half \ud83d"), "position 5"),
        ([{"role": "\ud83d", "content": "x"}], "template made of the messages holds half a char"),
    ],
)
def test_what_is_not_text_is_refused_by_name(
    tokenizer: TokenizerWrapper, messages: Any, words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        encode_prompt(tokenizer, messages)


def test_no_content_is_empty_content(tokenizer: TokenizerWrapper) -> None:
    talk = [{"role": "assistant", "content": None}, *user("x")]
    assert "None" not in tokenizer.decode(encode_prompt(tokenizer, talk))


@pytest.mark.parametrize(
    "ids",
    [
        np.array([3, 4]),
        np.array([3, 4], dtype=np.uint8),
        mx.array([3, 4]),
        [np.int64(3), 4],
        (3, 4),
    ],
)
def test_ids_of_any_kind(tokenizer: TokenizerWrapper, ids: Any) -> None:
    found = encode_prompt(tokenizer, ids)
    assert found == [3, 4]
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize("ids", [[True], [1.5], np.array([[1]]), {"a": 1}, None, 7, ["x"], b"ab"])
def test_what_is_no_prompt_is_told(tokenizer: TokenizerWrapper, ids: Any) -> None:
    with pytest.raises(RedrafterError):
        encode_prompt(tokenizer, ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template_args": {"messages": 1}}, "'messages', which is no argument"),
        ({"template_args": {"tokenizer": 1}}, "'tokenizer', which is no argument"),
        ({"template_args": {"tokenize": True}}, "'tokenize', which is no argument"),
        ({"template_args": {1: 2}}, "1, which is no argument"),
        ({"template_args": 5}, "chat_template_args has to be a mapping"),
        ({"tools": 5}, "tools has to be a list"),
    ],
)
def test_arguments_that_are_no_templates_are_told(
    tokenizer: TokenizerWrapper, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        encode_prompt(tokenizer, user("x"), **options)


def test_arguments_and_tools_reach_the_template(tokenizer: TokenizerWrapper) -> None:
    before = tokenizer.chat_template
    tokenizer.chat_template = "{{ shout }}{% for t in tools %}{{ t.function.name }}{% endfor %}"
    try:
        ids = encode_prompt(tokenizer, user("x"), tools=[TOOL], template_args={"shout": "dog "})
        assert tokenizer.decode(ids) == "dog add"
    finally:
        tokenizer.chat_template = before


# Its name of who speaks is added to the vocabulary, but not as a special token.
SPEAKS = "<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>"
DEEPSEEK = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + SPEAKS


class Marked:
    """A tokenizer whose model thinks and calls tools, as mlx-lm wraps it."""

    has_thinking = has_tool_calling = True
    think_start, think_end = "<think>", "</think>"
    tool_call_start, tool_call_end = "<tool_call>", "</tool_call>"
    response_initial_state = None
    response_transitions: ClassVar[dict[str, Any]] = {}
    structural_markers: tuple[str, ...] = ()

    @staticmethod
    def rfind_think_start(tokens: list[int]) -> int:
        return max((i for i, t in enumerate(tokens) if t == 1), default=-1)

    @staticmethod
    def rfind_think_end(tokens: list[int]) -> int:
        return max((i for i, t in enumerate(tokens) if t == 2), default=-1)

    @staticmethod
    def tool_parser(text: str, tools: Any) -> Any:
        import json

        return json.loads(text)


def test_thoughts_are_told_apart_however_the_text_is_cut() -> None:
    text = "<think>let me see</think>It is <b>4</b>."
    for size in (1, 2, 3, 50):
        passages = Passages(Marked())
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        found = [part for piece in pieces for part in passages.feed(piece)] + passages.flush()
        assert "".join(p.text for p in found if p.kind == "reasoning") == "let me see"
        assert "".join(p.text for p in found if p.kind == "normal") == "It is <b>4</b>."


def test_a_template_may_have_opened_the_thoughts() -> None:
    assert Passages(Marked(), [5, 1, 6]).thinking
    assert not Passages(Marked(), [5, 1, 6, 2]).thinking
    parsed = parse_answer(Marked(), "hm</think>yes", prompt=[1])
    assert (parsed.thoughts, parsed.text) == ("hm", "yes")


@pytest.mark.parametrize("format_of", [bundles.TEMPLATE, DEEPSEEK])
@pytest.mark.parametrize("role", ["system", "user", "tool", "assistant"])
def test_a_marker_in_a_message_opens_no_thoughts(tmp_path: Path, format_of: str, role: str) -> None:
    bundles.make_tokenizer(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    plain.add_tokens(["<think>", "</think>", SPEAKS])
    plain.chat_template = format_of
    tokenizer = TokenizerWrapper(plain)
    talk = [{"role": role, "content": "What does <think> mean?"}, *user("say")]
    for messages in (talk, talk[::-1]):
        prompt = encode_prompt(tokenizer, messages)
        assert parse_answer(tokenizer, "It is one.", prompt=prompt).text == "It is one."
        opened = [*prompt, *tokenizer.encode("<think>\nLet me", add_special_tokens=False)]
        assert parse_answer(tokenizer, "see.", prompt=opened).thoughts == "see."


def test_calls_of_tools_are_parsed_and_what_is_none_stays_text() -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    parsed = parse_answer(Marked(), f"I add. {call}{call}<tool_call>oops</tool_call>")
    assert parsed.tool_calls == ({"name": "add", "arguments": {"a": 1}},) * 2
    assert parsed.text == "I add. oops"


@pytest.mark.parametrize("answer", [None, [1, 2], b"yes"])
def test_an_answer_that_is_no_text_is_refused(answer: Any) -> None:
    with pytest.raises(RedrafterError, match="text has to be an answer's text"):
        parse_answer(Marked(), answer)


@pytest.mark.parametrize(
    ("tokenizer", "options", "words"),
    [
        (5, {}, "The tokenizer has to be the one from mlx_redrafter.load, .* is a int"),
        ("models/pocket", {}, "The tokenizer has to be the one from .* is a str"),
        (Marked(), {"prompt": "<think>"}, "prompt has to be a list of token ids"),
        (Marked(), {"prompt": 5}, "prompt has to be a list of token ids"),
        (Marked(), {"tools": "add"}, "tools has to be a list of descriptions"),
    ],
)
def test_an_answer_is_parsed_with_arguments_of_their_kinds(
    tokenizer: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RedrafterError, match=words):
        parse_answer(tokenizer, "yes", **options)


def test_an_answer_is_parsed_by_the_markers_of_transformers_tokenizer(tmp_path: Path) -> None:
    bundles.make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<think>", "</think>"])
    parsed = parse_answer(tokenizer, "<think>hm</think>yes")
    assert (parsed.thoughts, parsed.text) == ("hm", "yes")
