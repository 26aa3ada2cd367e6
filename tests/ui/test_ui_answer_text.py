from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mlx_redrafter.system.visible import visible
from mlx_redrafter.ui.chat.answer_text import AnswerText, line_breaks


def lines_of(pieces, width):
    text = AnswerText()
    lines = [line for piece in pieces for line in text.feed(piece, "answer.drafted", width)]
    return [line.plain for line in [*lines, text.tail]]


def test_words_move_whole_and_long_ones_are_cut():
    assert lines_of(["one two three"], 8) == ["one two", "three"]
    assert lines_of(["abcdefghij"], 4) == ["abcd", "efgh", "ij"]
    assert lines_of(["ab abcdefghij k"], 4) == ["ab", "abcd", "efgh", "ij k"]


def test_newlines_and_indentation_stay():
    assert lines_of(["def f():\n    return 1\n\nx"], 20) == ["def f():", "    return 1", "", "x"]


def test_blank_lines_before_an_answer_are_dropped():
    assert lines_of(["\n", "\n\n", "x"], 9) == ["x"]


def test_wide_characters_count_two_cells():
    assert lines_of(["日本語文字"], 4) == ["日本", "語文", "字"]


def test_each_token_keeps_its_own_style_across_a_break():
    text = AnswerText()
    text.feed("one ", "answer.drafted", 8)
    (line,) = text.feed("two three", "answer.target", 8)
    assert [(line.plain[s.start : s.end], s.style) for s in line.spans] == [
        ("one ", "answer.drafted"),
        ("two", "answer.target"),
    ]
    assert text.tail.plain == "three"


def test_control_characters_become_pictures():
    assert visible("a\x1b[31m\x07\x9b\x7f\r\nb\tc") == "a␛[31m␇\ufffd␡\nb\tc"


printable = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Cn", "Mn", "Me"]), max_size=80)


@given(printable, st.integers(4, 20), st.data())
def test_however_the_text_comes_in_pieces_the_lines_are_the_same(text, width, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert lines_of(pieces, width) == lines_of([text], width)


@given(printable, st.integers(4, 20))
def test_every_piece_but_its_trailing_space_fits_the_width(text, width):
    edges = [0, *line_breaks(text, width), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) == text
    assert all(cell_len(piece.rstrip()) <= width for piece in pieces)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_very_narrow_terminal_still_gets_every_letter(width):
    assert "".join(lines_of(["abc defghi"], width)).replace(" ", "") == "abcdefghi"
