"""What is said of a config.json that does not describe its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversion_models import make_head, write_head, write_target

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
    assert ".convert-" not in text  # the directory of the work is gone by then
    return text


@pytest.mark.parametrize("value", [[1], "x", 3])
def test_a_text_configuration_is_an_object(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    change(source, text_config=value)
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert f"is {json.dumps(value)}, but has to be an object" in text
    assert "text_config in " in text


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (None, "{} has no config.json, so it is not a {}; put"),
        ("[]", "{}/config.json holds no JSON object, so it is not a {}'s; put"),
        ("{", "{}/config.json is not readable JSON: Expecting property name"),
    ],
)
@pytest.mark.parametrize("part", ["model", "drafter"])
def test_the_persons_own_path_is_named(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    config: str | None,
    wrong: str,
) -> None:
    head = write_head(tmp_path / "head", make_head())
    damaged = source if part == "model" else head
    if config is None:
        (damaged / "config.json").unlink()
    else:
        (damaged / "config.json").write_text(config)
    flags = ("--hf-path", source, "--drafter", head, "--mlx-path", tmp_path / "out")
    text = told(capsys, *flags)
    assert wrong.format(damaged, part) in text
    assert "put the one there that save_pretrained wrote beside the weights" in text


def test_counts_are_told_of_the_persons_own_file(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = write_head(tmp_path / "head", make_head())
    change(head, num_draft_layers=10**6)
    flags = ("--hf-path", source, "--drafter", head, "--mlx-path", tmp_path / "out")
    assert f"{head}/config.json asks for 1,000,000" in told(capsys, *flags)
    change(source, num_hidden_layers=10**6)
    assert f"{source}/config.json asks for 1,000,000" in told(capsys, *flags)


def test_a_damaged_index_says_what_to_do(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "model.safetensors.index.json").write_text("[]")
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert "so it is not a sharded checkpoint's; download it again, or remove it" in text


def test_code_of_a_models_own_is_asked_for_by_its_flag(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(source, model_file="x.py")
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert f'{source}/config.json names a Python file of its own, "x.py"' in text
    assert "pass --trust-remote-code" in text


def test_a_bundle_with_code_of_its_own_is_checked_with_that(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(source, model_file="own.py")
    (source / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs\n")
    flags = ["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "--check"]
    assert main([*flags, "--trust-remote-code"]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_code_of_a_tokenizers_own_is_asked_for_by_its_flag(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code.")

    monkeypatch.setattr("mlx_redrafter.conversion.target_part.load_tokenizer", refuse)
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert "pass --trust-remote-code" in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ({"vocab_size": None}, "(vocab_size is null; "),
        ({"rms_norm_eps": None}, "(rms_norm_eps is null; "),
        ({"hidden_size": "64"}, '(hidden_size is "64"; '),
        ({"num_hidden_layers": None}, "(num_hidden_layers is null; "),
        ({"text_config": None}, "(text_config is null; "),
        ({"num_attention_heads": 0}, "(float division by zero)"),
        ({"tie_word_embeddings": "x"}, 'tie_word_embeddings in the target\'s config.json is "x"'),
        ({"eos_token_id": "x"}, 'eos_token_id in the target\'s config.json is "x"'),
    ],
)
def test_the_entry_that_is_wrong_is_named(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    entries: dict[str, Any],
    wrong: str,
) -> None:
    change(source, **entries)
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert wrong in text
    assert "use the config.json that belongs to the weights" in text
    assert "upgrade mlx-lm" not in text
    assert "tokenizer" not in text


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_type_of_weights_is_named(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    values = json.loads((source / "config.json").read_text())
    kept = {key: value for key, value in values.items() if "dtype" not in key}
    (source / "config.json").write_text(json.dumps({**kept, name: "float8"}))
    text = told(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out")
    assert f"{source / 'config.json'} says 'float8' as {name}, which is no type" in text
