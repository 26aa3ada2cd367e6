"""Thoughts in the chat: folded, shown apart, and gone on with."""

from __future__ import annotations

import io

import pytest
from chat_fakes import FakeStream, make_session
from rich.console import Console

from mlx_redrafter.text.passages import Passage
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.theme import THEME


class Thinking:
    """A stream of a model that thinks before it says something."""

    has_thinking = True
    has_tool_calling = False
    think_start, think_end = "<think>", "</think>"
    response_initial_state = None
    response_transitions: dict[str, object] = {}  # noqa: RUF012
    structural_markers = ()

    @staticmethod
    def rfind_think_start(_tokens: list[int]) -> int:
        return -1


def thinking_session(stream: FakeStream, settings: ChatSettings) -> Session:
    session = make_session(stream, settings)
    for name, value in vars(Thinking).items():
        if not name.startswith("__"):
            setattr(session.tokenizer, name, getattr(Thinking, name, value))
    return session


@pytest.mark.parametrize(
    ("begun", "rest", "given"),
    [
        ("<think>hm", "</think>yes", [Passage("yes", "normal")]),
        ("<think>hm</thin", "k>yes", [Passage("yes", "normal")]),
        ("<think>hm</thin", "</think>yes", [Passage("yes", "normal")]),
        ("<think>hm</thin", "g>", [Passage("g>", "reasoning")]),
        ("<think>hm</thin", "k", []),
        ("<think>hm<", "</think>", []),
    ],
)
def test_what_is_gone_on_with_in_thoughts_is_told_apart(
    begun: str, rest: str, given: list[Passage]
) -> None:
    """Whose beginning of a marker was shown already, as text that nothing followed."""
    for size in (1, len(rest)):
        session = thinking_session(FakeStream(), ChatSettings())
        session._begun = begun
        passages = session.passages()
        assert passages.thinking
        pieces = [rest[at : at + size] for at in range(0, len(rest), size)]
        parts = [part for piece in pieces for part in passages.feed(piece)]
        kinds = {part.kind for part in parts}
        joined = [Passage("".join(p.text for p in parts if p.kind == k), k) for k in kinds]
        assert joined == given
    assert [part.text for part in passages.flush()] == (["k"] if rest == "k" else [])


@pytest.mark.parametrize("shown", [True, False])
def test_thoughts_are_shown_apart_or_folded(
    shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlx_redrafter.ui.chat.screen import ScreenFrontEnd

    session = thinking_session(FakeStream("<think>hm</think>yes"), ChatSettings(thoughts=shown))
    console = Console(
        theme=THEME, file=io.StringIO(), force_terminal=True, width=60, color_system="standard"
    )
    front = ScreenFrontEnd(console, console, lambda: "")
    front.stream(session, session.ask("why"))
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert ("\x1b[2;3mh" in last) is shown  # dim and italic
    assert "think" not in last
    assert session.last is not None
    assert session.last.text == "<think>hm</think>yes"


# Scripts.
