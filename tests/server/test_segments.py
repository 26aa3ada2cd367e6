"""Who proposed each character of an answer, markers of thoughts and calls left out."""

from __future__ import annotations

from itertools import cycle

import pytest
from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import muse_spark

from mlx_redrafter.engine.step import TokenSource
from mlx_redrafter.server.protocol.answer import Answer, Text
from mlx_redrafter.server.work.segments import Segments
from mlx_redrafter.text.passages import parse_answer

SOURCES: tuple[TokenSource, ...] = ("own", "guessed", "copied")


def fed(tokenizer: TokenizerWrapper, *pieces: tuple[str, TokenSource]) -> list[Text]:
    segments = Segments(tokenizer, 0, [])
    made = [part for text, source in pieces for part in segments.feed(text, source)]
    return [part for part in [*made, *segments.finish()] if isinstance(part, Text)]


def test_headers_of_messages_are_not_said(tokenizer: TokenizerWrapper) -> None:
    """Muse Spark writes one before each of an answer's parts, and the template another."""
    call = '<atem:function_calls><atem:invoke name="look"></atem:invoke></atem:function_calls>'
    text = (
        "to=self<|message|>Hm.<|eom|>\n<|start|>assistant to=commentary<|message|>I look.<|eom|>"
        f"<|start|>assistant to=look<|message|>{call}<|eom|>"
        "<|start|>assistant to=user<|message|>Yes.<|eom|><|start|>assist"
    )
    muse = TokenizerWrapper(
        tokenizer._tokenizer,
        response_format=RESPONSE_FORMAT,
        tool_parser=muse_spark.parse_tool_call,
        tool_call_start=muse_spark.tool_call_start,
        tool_call_end=muse_spark.tool_call_end,
    )
    for size in (1, 7, 1000):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        segments = Segments(muse, 0, [{"type": "function", "function": {"name": "look"}}], "header")
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
