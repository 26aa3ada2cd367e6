"""Who proposed each character of an answer, markers of thoughts and calls left out."""

from __future__ import annotations

from itertools import cycle

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.engine.step import TokenSource
from mlx_redrafter.server.protocol.answer import Text
from mlx_redrafter.server.work.segments import Segments

SOURCES: tuple[TokenSource, ...] = ("own", "guessed", "copied")


def fed(tokenizer: TokenizerWrapper, *pieces: tuple[str, TokenSource]) -> list[Text]:
    segments = Segments(tokenizer, 0, [])
    made = [part for text, source in pieces for part in segments.feed(text, source)]
    return [part for part in [*made, *segments.finish()] if isinstance(part, Text)]


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
