"""The chat at a terminal that cannot draw, or whose output goes elsewhere."""

from __future__ import annotations

import sys

import pytest

from mlx_redrafter.ui.chat.plain import PlainFrontEnd
from mlx_redrafter.ui.theme import PROMPT


class Keyboard:
    """A terminal at which a key that ends the line is pressed."""

    def __init__(self, pressed: type[BaseException] | None, tty: bool = True):
        self.pressed, self.tty = pressed, tty

    def isatty(self) -> bool:
        return self.tty

    def readline(self) -> str:
        if self.pressed is not None:
            raise self.pressed
        return ""


@pytest.mark.parametrize(
    ("pressed", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (None, EOFError)]
)
def test_the_line_of_the_prompt_ends_with_ctrl_c_and_ctrl_d(
    pressed: type[BaseException] | None,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(pressed))
    with pytest.raises(raised):
        PlainFrontEnd().read()
    assert capsys.readouterr().err == f"{PROMPT}\n"


def test_the_end_of_a_pipe_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(None, tty=False))
    with pytest.raises(EOFError):
        PlainFrontEnd().read()
    assert capsys.readouterr() == ("", "")
