"""Copies of the text on the chat's screen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from chat_fakes import STEP, FakeStream, RecordingFrontEnd, make_session
from rich.console import Console

from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.tree import HostTree
from mlx_redrafter.ui.chat.commands import run_command
from mlx_redrafter.ui.chat.options import parse_chat_options
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.views import drafter_words, legend, session_stats
from mlx_redrafter.ui.theme import THEME


def copying(drafter: object = None) -> Session:
    session = make_session(drafter=drafter)
    words = "recurrent" if drafter else None
    session.facts = replace(session.facts, copies=True, drafter=words)
    return session


def shown(session: Session, line: str) -> str:
    front = RecordingFrontEnd()
    run_command(line, session, front)
    return "\n".join([*front.said, *front.shown])


def test_without_a_drafter_the_text_is_copied() -> None:
    session = copying()
    assert session.drafts
    assert not session.guesses
    assert "copied where it repeats" in drafter_words(session)
    assert legend(session).plain == "copied from the text · supplied by the model"
    assert legend(copying("head")).plain.count("·") == 2


def test_copies_are_switched_off_and_on() -> None:
    session = copying()
    stream: FakeStream = session._stream  # type: ignore[assignment]
    assert shown(session, "/copy off") == "Copying from the text is off."
    assert not session.drafts
    assert drafter_words(session) == "none, so decoding is plain"
    list(session.ask("q"))
    assert stream.calls[-1]["copy"] is False
    assert shown(session, "/copy on") == "Copying from the text is on."
    list(session.ask("q"))
    assert stream.calls[-1]["copy"] is True


def test_a_model_that_verifies_nothing_copies_nothing() -> None:
    with pytest.raises(RedrafterError, match="cannot be verified"):
        shown(make_session(drafter=None), "/copy on")


def test_no_copy_on_the_command_line() -> None:
    assert parse_chat_options(["--model", "m"]).settings.copy
    assert not parse_chat_options(["--model", "m", "--no-copy"]).settings.copy


def test_a_copied_chain_is_a_line_of_the_tree() -> None:
    tree = HostTree(
        tokens=tuple(map(ord, "abcdxy")),
        parents=(-1, 0, 1, 2, 3, 0),
        log_probs=(0.0, -0.1, -0.2, -0.3, -0.4, -2.0),
    )
    step = StepRecord(tree, tuple(map(ord, "bcdz..")), (0, 1, 2, 3), frozenset({1, 2, 3, 4}))
    session = copying()
    list(session.ask("q"))
    assert session.last is not None
    session.last = replace(session.last, step=step)
    text = shown(session, "/tree")
    assert "✓ bcd  -0.30 copied" in text
    assert "  x  -0.40 copied" in text
    assert "  y  -2.00" in text
    assert "of copies what was expected of them" in " ".join(text.split())
    assert "copied" not in shown_tree(session)


def shown_tree(session: Session) -> str:
    assert session.last is not None
    session.last = replace(session.last, step=STEP)
    return shown(session, "/tree")


def test_statistics_tell_sources() -> None:
    session = copying()
    list(session.ask("q"))
    session.totals.drafting.copied, session.totals.drafting.accepted_copies = 4, 1
    console = Console(width=100)
    with console.capture() as captured:
        console.print(shown(session, "/stats"))
    assert "1 copied" in captured.get()


def test_tokens_by_source_are_all_tokens() -> None:
    """The first token of an answer, which is no step's, and plain answers are the model's own."""
    session = copying("head")
    list(session.ask("q"))
    drafting = session.totals.drafting
    drafting.record([1, 2], 2, 3, copied=1, accepted_copies=1)
    session.totals.tokens = drafting.tokens + 1
    console = Console(theme=THEME, width=100, color_system=None)
    with console.capture() as captured:
        console.print(session_stats(session))
    sources = next(line for line in captured.get().splitlines() if "by source" in line)
    counts = [int(number) for number in re.findall(r"\d+", sources)]
    assert sum(counts) == session.totals.tokens
    assert counts[1] == 1
