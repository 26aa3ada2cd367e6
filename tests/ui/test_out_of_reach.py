"""Directories that a person may not enter are named in a sentence, or done without."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import bundles
import pytest

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning.cost_store import _read
from mlx_redrafter.text.loading import load
from mlx_redrafter.ui.chat import main as chat
from mlx_redrafter.ui.chat.lines import append_history, load_history
from mlx_redrafter.ui.cli import convert, train


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that nobody may enter, root neither, who may enter any."""
    directory = tmp_path / "locked"
    bundles.make_bundle(directory / "bundle")
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if directory in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    return directory


@pytest.mark.parametrize("flag", ["--model", "--drafter", "--adapter-path"])
@pytest.mark.parametrize("name", [".", "bundle", "nothing", "x.gguf"])
def test_the_chat_names_what_it_may_not_reach(
    flag: str, name: str, locked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if flag == "--model" else ["--model", str(bundles.make_bundle(tmp_path / "open"))]
    assert chat.main([*model, flag, str(locked / name), "-p", "hi"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"'{locked / name}" in told
    assert "cannot be reached (Permission denied)" in told


def test_other_commands_name_it_too(
    locked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(locked / "bundle")
    assert convert.main(["--hf-path", bundle, "--mlx-path", str(tmp_path / "out")]) == 2
    ours = str(bundles.make_bundle(tmp_path / "open", drafter=False))
    data = str(locked / "chats.jsonl")
    assert train.main(["--model", ours, "--data", data, "--output", str(tmp_path / "d")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("cannot be reached (Permission denied)") == 2
    assert "Traceback" not in printed


def test_load_names_it(locked: Path) -> None:
    with pytest.raises(RedrafterError, match="bundle' cannot be reached"):
        load(locked / "bundle")


def test_a_home_that_cannot_be_entered_is_done_without(locked: Path) -> None:
    history = locked / ".local" / "chat_history"
    assert load_history(history) == []
    append_history(history, "x")
    assert _read(locked / ".cache" / "costs.json") is None
