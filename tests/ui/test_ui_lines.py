from __future__ import annotations

import pytest

from mlx_redrafter.system.visible import whole_characters
from mlx_redrafter.ui.chat.lines import (
    HISTORY_BYTES,
    HISTORY_SIZE,
    append_history,
    complete_path,
    join_lines,
    load_history,
)


def reader(lines):
    rest = iter(lines)

    def read(first):
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


def test_a_backslash_at_the_end_asks_for_another_line():
    assert join_lines(reader(["one\\", "two\\", "three", "four"])) == "one\ntwo\nthree"
    assert join_lines(reader(["one\\"])) == "one"


def test_the_end_of_input_is_passed_on():
    with pytest.raises(EOFError):
        join_lines(reader([]))


def test_halves_of_characters_are_replaced():
    assert whole_characters("a\udce4b") == "a?b"
    assert whole_characters("ä\U0001f600") == "ä\U0001f600"


def test_history_survives_newlines_damage_and_absence(tmp_path):
    path = tmp_path / "state" / "history"
    assert load_history(path) == []
    assert load_history(None) == []
    append_history(None, "x")
    append_history(path, "one\ntwo")
    with path.open("a") as file:
        file.write('{"not": "a line"}\ngarbage\n')
    append_history(path, "grüß")
    assert load_history(path) == ["one\ntwo", "grüß"]
    assert path.stat().st_mode & 0o077 == 0
    append_history(path / "below a file", "x")


def test_history_survives_line_separators_and_a_half_written_end(tmp_path):
    path = tmp_path / "history"
    append_history(path, "pasted\u2028from a page")
    with path.open("ab") as file:
        file.write('"gr\u00fc'.encode()[:-1])
    assert load_history(path) == ["pasted\u2028from a page"]
    append_history(path, "after it")
    assert load_history(path) == ["pasted\u2028from a page", "after it"]


def test_only_the_end_of_a_huge_history_is_read(tmp_path):
    path = tmp_path / "history"
    append_history(path, "the first")
    append_history(path, "x" * HISTORY_BYTES)
    append_history(path, "the last")
    assert load_history(path) == ["the last"]


def test_only_the_latest_history_is_read(tmp_path):
    path = tmp_path / "history"
    path.write_text("".join(f'"{i}"\n' for i in range(HISTORY_SIZE + 5)))
    lines = load_history(path)
    assert len(lines) == HISTORY_SIZE
    assert lines[-1] == str(HISTORY_SIZE + 4)


def test_paths_are_completed(tmp_path):
    (tmp_path / "talk.json").write_text("")
    (tmp_path / "tales").mkdir()
    (tmp_path / "other").write_text("")
    assert complete_path(f"{tmp_path}/ta") == [f"{tmp_path}/tales/", f"{tmp_path}/talk.json"]
    assert complete_path(f"{tmp_path}/nowhere/x") == []
