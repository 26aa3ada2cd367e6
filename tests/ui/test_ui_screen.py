from __future__ import annotations

import io
from typing import Any

import pytest
from chat_fakes import FakeStream, make_session
from rich.console import Console

from mlx_redrafter.ui.chat import views
from mlx_redrafter.ui.chat.answer import Baseline
from mlx_redrafter.ui.chat.screen import ScreenFrontEnd
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.chat.status import Reading, bars, baseline_words, ending, status_line, summary
from mlx_redrafter.ui.output import make_console
from mlx_redrafter.ui.theme import THEME

READING = Reading(212.4, 2.345, True, 3.9, (1.0, 0.5, 0.0), 4, 20, 1312, 0.52)


def screen(width=60):
    console = Console(
        theme=THEME, file=io.StringIO(), force_terminal=True, width=width, height=20,
        color_system="standard", highlight=False, legacy_windows=False,
    )  # fmt: skip
    return ScreenFrontEnd(console, console, lambda: ""), console


def test_a_terminal_of_unknown_size_is_no_reason_to_show_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setenv("LINES", "0")
    make_console().print("some words")
    assert capsys.readouterr().out == "some words\n"
    monkeypatch.setenv("COLUMNS", "7")
    assert make_console().width == 7


def test_bars_grow_with_their_share_and_never_vanish():
    assert bars([0.0, 0.5, 1.0]) == "▁▄█"


def test_the_status_line_has_every_figure_where_there_is_room():
    text = status_line(READING, 200).plain
    for words in ("212 tok/s", "2.35× plain", "3.90 tok/step", "█▄▁", "4/20", "1,312", "0.52 GB"):
        assert words in text


@pytest.mark.parametrize("width", [5, 20, 40, 79])
def test_a_narrow_status_line_leaves_the_last_figures_out(width):
    line = status_line(READING, width)
    assert line.cell_len <= max(width, len("212 tok/s"))
    assert line.plain.startswith("212 tok/s")


def test_what_was_not_measured_is_a_dash():
    reading = Reading(0.0, None, True, 0.0, (), 0, 0, 10, 0.1)
    assert status_line(reading, 200).plain.startswith("- tok/s  - plain")
    assert "not measured yet" in baseline_words(None)


def test_a_slow_speed_is_not_told_as_none():
    reading = Reading(0.4, None, True, 0.0, (), 0, 0, 10, 0.1)
    assert status_line(reading, 200).plain.startswith("0.4 tok/s")
    assert "2.4 tok/s" in baseline_words(Baseline(2.4, 48, 23))


def test_the_header_says_how_plain_decoding_was_measured():
    session = make_session()
    session.take_baseline(Baseline(90.0, 48, 23))
    console = Console(theme=THEME, width=100)
    with console.capture() as captured:
        console.print(views.header(session))
    text = captured.get()
    for words in ("fake", "recurrent, small, beam 2 × 2", "CPU, float32", "greedy", "90 tok/s",
                  "measured here over 48 tokens", "guessed by the drafter"):  # fmt: skip
        assert words in text


def test_an_answer_is_printed_whole_and_in_its_styles():
    front, console = screen()
    stream = FakeStream("hello")
    session = make_session(stream)
    front.stream(session, session.ask("q"))
    last = console.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "\x1b[1mh\x1b[0m\x1b[32me\x1b[0m" in last


def test_a_plain_answer_has_no_marks_as_there_is_no_legend():
    front, console = screen()
    session = make_session(settings=ChatSettings(draft=False))
    front.stream(session, session.ask("q"))
    last = console.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "\x1b[39mh" in last
    assert "\x1b[1m" not in last


def test_a_long_answer_reaches_the_scrollback_once(monkeypatch):
    words = " ".join(f"w{i}" for i in range(400))
    monkeypatch.setattr("mlx_redrafter.ui.chat.screen.FRAME_SECONDS", 0.0)
    front, console = screen(width=40)
    session = make_session(FakeStream(words), ChatSettings(max_tokens=10**6))
    model: Any = session.model
    model.context_limit = None
    front.stream(session, session.ask("q"))
    assert settled(console.file.getvalue()).split() == words.split()


def settled(output: str) -> str:
    """What stays on the screen: erased lines taken out, styles taken off."""
    import re

    lines = [""]
    for part in re.split(r"(\x1b\[\d*[A-Za-z]|\x1b\[[\d;?]*[a-zA-Z]|\r|\n)", output):
        if part == "\n":
            lines.append("")
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif part == "\x1b[1A":
            assert lines[-1] == ""
            lines.pop()
        elif part and part[0] not in "\x1b\r":
            lines[-1] += part
    return "\n".join(lines)


def test_an_interrupted_answer_shows_what_there_was():
    front, console = screen()
    stream = FakeStream("hello")

    def stop(count):
        if count == 3:
            raise KeyboardInterrupt

    stream.on_token = stop
    session = make_session(stream)
    with pytest.raises(KeyboardInterrupt):
        front.stream(session, session.ask("q"))
    assert settled(console.file.getvalue()).split() == ["he"]
    assert session.last.text == "he"
    assert "Stopped" in ending(session.last, 10)
    assert ending(session.last, 10, goes_on=False) == "Stopped."


def test_the_summary_counts_what_was_drafted():
    session = make_session()
    list(session.ask("q"))
    text = summary(session.last, 2.0)
    assert text == (
        "5 tokens · 200 tok/s · 2.00× plain · 2.00 tokens/step · 5 of them drafted · "
        "accepted by depth 100 0 % · prompt 1.0 tok/s · 0.50 GB"
    )
    session.settings = ChatSettings(draft=False)
    list(session.ask("q"))
    assert summary(session.last, 1.0) == (
        "5 tokens · 100 tok/s · plain decoding · prompt 1.0 tok/s · 0.50 GB"
    )


def test_a_model_without_a_drafter_claims_nothing():
    session = make_session(drafter=None)
    session.facts = session.facts.__class__("fake", None, "CPU", "float32", (2, 2))
    console = Console(theme=THEME, width=100)
    with console.capture() as captured:
        console.print(views.header(session))
    assert "plain" in captured.get()
    assert "guessed" not in captured.get()


def test_nothing_a_model_says_reaches_the_terminal_as_a_control():
    front, console = screen()
    session = make_session(FakeStream("a\x1b]0;title\x07b"))
    front.stream(session, session.ask("q"))
    assert "\x1b]" not in console.file.getvalue()
    assert "\x07" not in console.file.getvalue()


def test_ctrl_c_at_a_question_of_yes_or_no_ends_its_line(monkeypatch):
    front, console = screen()

    def stop(_question):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", stop)
    with pytest.raises(KeyboardInterrupt):
        front.confirm("Replace it?")
    assert console.file.getvalue() == "\n"
