"""What is said of a config.json that does not describe its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversion_models import write_target

from mlx_redrafter.ui.cli.convert import main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


@pytest.fixture
def source(tmp_path: Path, target: Path) -> Path:
    """A checkpoint to be tampered with."""
    shutil.copytree(target, tmp_path / "source")
    return tmp_path / "source"


def change(directory: Path, **entries: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that is refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("value", [[1], "x", 3])
def test_a_text_configuration_is_an_object(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    change(source, text_config=value)
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert f"is {json.dumps(value)}, but has to be an object" in text
    assert "text_config in " in text
