"""Processes of one run: they have to be started alike, and one of them speaks for all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_redrafter.errors import SharedError
from mlx_redrafter.system import rank_watch
from mlx_redrafter.ui import commands
from mlx_redrafter.ui.chat.options import parse_chat_options
from mlx_redrafter.ui.cli import convert, plan, serve_flags
from mlx_redrafter.ui.flags import compared
from mlx_redrafter.ui.parsing import OneSentenceParser
from mlx_redrafter.ui.together import started_alike


class Ranks:
    """Rank 0 of three, of which the last says something that is known beforehand."""

    def __init__(self, last: str | None = None):
        self._last = last

    def gather_texts(self, text: str) -> list[str]:
        return [text, text, text if self._last is None else self._last]


def started(monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], last: str | None) -> Any:
    ranks = Ranks(last)
    monkeypatch.setattr(rank_watch, "current_ranks", lambda: ranks)
    return started_alike("chat.py", flags), ranks


def chat(*arguments: str) -> dict[str, Any]:
    return parse_chat_options(arguments).compared()


def test_what_is_started_alike_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = chat("--model", "a", "--temp", "1")
    found, ranks = started(monkeypatch, flags, None)
    assert found is ranks
    monkeypatch.setattr(rank_watch, "current_ranks", lambda: None)
    assert started_alike("chat.py", flags) is None


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("chat.py", ["--no-draft"], r"with other flags than rank 0 \(--no-draft\)"),
        ("chat.py", ["--no-copy", "--seed", "3"], r"flags than rank 0 \(--seed, --no-copy\)"),
        ("plan", [], "as another program than rank 0"),
    ],
)
def test_what_is_started_otherwise_is_named(
    program: str, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = json.dumps([program, chat("--model", "m", *arguments)])
    with pytest.raises(SharedError, match=f"^Rank 2 was started .*{words}: start the same command"):
        started(monkeypatch, chat("--model", "m"), last)


@pytest.mark.parametrize("said", ["", "The model is not there.", "[]", "3"])
def test_what_is_no_command_of_this_package_is_another_program(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SharedError, match="Rank 2 was started as another program than rank 0"):
        started(monkeypatch, chat("--model", "m"), said)


def test_places_and_what_is_rank_0s_may_differ() -> None:
    assert chat("--model", "a", "--drafter", "x") == chat("--model", "b", "--drafter", "y")

    def serve(*arguments: str) -> dict[str, Any]:
        return compared(serve_flags.read_flags(arguments))

    own = ("--host", "0.0.0.0", "--port", "1", "--api-key", "secret", "--allowed-host", "here")
    assert serve("--model", "a") == serve("--model", "b", *own)
    assert serve("--max-concurrent", "2") != serve()
    assert "secret" not in str(serve(*own))


def test_help_and_slips_are_told_by_rank_0_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("MLX_RANK", rank)
        with pytest.raises(SystemExit) as slip:
            parse_chat_options(["--top-p", "7"])
        with pytest.raises(SystemExit) as asked:
            OneSentenceParser("chat.py").parse_args(["--help"])
        codes = [slip.value.code, asked.value.code]
        codes += [commands.main([]), convert.main([]), plan.main(["a", "--model", "b"])]
        assert codes == [2, 0, 0, 0, 2]
        shown.append(capsys.readouterr())
    assert "--top-p" in shown[0].err
    assert "Two models are named" in shown[0].err
    assert shown[0].out.count("usage: ") >= 2
    assert shown[1] == ("", "")
