"""What README and docs tell people to type: it exists, it has these flags, and it works."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import bundles
import pytest
from pages import ROOT, blocks, commands, joined

from mlx_redrafter.training import train_drafter
from mlx_redrafter.ui.chat import main as chat_main
from mlx_redrafter.ui.chat import options as chat_options
from mlx_redrafter.ui.cli import benchmark, benchmark_flags, convert, plan, serve_flags, train

PARSERS = {
    "chat.py": chat_options.build_parser,
    "convert.py": convert.build_parser,
    "mlx_redrafter.train": train.build_parser,
    "mlx_redrafter.plan": plan.build_parser,
    "mlx_redrafter.benchmark": benchmark_flags.build_parser,
    "mlx_redrafter.server": serve_flags.build_parser,
}
PLACEHOLDERS = {"PRECISION": "stored", "N": "1"}


def test_pages_hold_commands() -> None:
    assert len(commands()) > 40


@pytest.mark.parametrize(
    ("page", "words"),
    commands(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60],
)
def test_a_command_exists_and_has_these_flags(
    page: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = words[0] == "-m"
    name, *arguments = words[1:] if module else words
    if name in PARSERS:
        arguments = [PLACEHOLDERS.get(word, word) for word in arguments]
        if arguments and arguments != ["..."] and "--help" not in arguments:
            parse(PARSERS[name](), arguments, capsys)
    elif module and name in ("venv", "pytest", "mlx_redrafter"):
        assert all((ROOT / word).exists() for word in arguments if "/" in word), page
    else:
        place = ROOT / name.replace(".", "/") if module else ROOT / name
        script = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        assert script.is_file(), f"{page}: there is no {name}"
        has_flags(script, arguments)


def parse(
    parser: argparse.ArgumentParser, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def has_flags(script: Path, arguments: list[str]) -> None:
    files = script.parent.glob("*.py") if script.name == "__main__.py" else [script]
    source = "".join(file.read_text("utf-8") for file in files)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for word in own:
        if re.fullmatch(r"--[a-z][a-z-]*", word):
            known = word in source or word[2:].replace("-", "_") in source or word == "--help"
            assert known, f"{script.name} has no {word}"


# What is short enough is run: snippets of Python as they stand, the README's commands in a row.

# The machine is not measured either, which takes some seconds.
SHORTER = {
    "models/pocket/README.md": [('pocket")', 'pocket", plan=False)')],
    "docs/training.md": [("steps=4000", "steps=2, exit_dim=32, num_draft_layers=0")],
    "docs/batches.md": [("max_tokens=100", "max_tokens=4"), ('pocket")', 'pocket", plan=False)')],
    "README.md": [("max_tokens=100", "max_tokens=4"), ('pocket")', 'pocket", plan=False)')],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the names of the pages lead to something small."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pocket").symlink_to(ROOT / "models" / "pocket")
    bundles.make_bundle(tmp_path / "TARGET", drafter=False)
    bundles.make_bundle(tmp_path / "models" / "my-4bit", drafter=False)
    rows = [{"messages": [{"role": "user", "content": f"what {i}?"}]} for i in range(6)]
    answered = [
        {"messages": [*row["messages"], {"role": "assistant", "content": "the dog"}]}
        for row in rows
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, answered)))
    (tmp_path / "question.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_redrafter.blas_loaded", True)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "text"), blocks("python"), ids=[page for page, _ in blocks("python")]
)
def test_a_snippet_runs(page: str, text: str, place: Path, tmp_path: Path) -> None:
    for old, new in SHORTER.get(page, []):
        text = text.replace(old, new)
    snippet = tmp_path / "snippet.py"
    snippet.write_text(text)
    runpy.run_path(str(snippet), run_name="__main__")


def words_of(start: str) -> list[str]:
    """A command's arguments as README has them."""
    text = "\n".join(text for page, text in blocks("sh") if page == "README.md")
    line = next(line for line in joined(text) if line.startswith(start))
    return shlex.split(line, comments=True)[len(shlex.split(start)) :]


def test_the_readmes_way_from_a_model_to_a_chat(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command as it stands, made shorter by flags behind it."""
    small = ["--steps", "2", "--exit-dim", "32", "--num-draft-layers", "0", "--held-out", "2"]
    small += ["--regenerate-max-tokens", "4", "--eval-max-tokens", "4", "--batch-tokens", "64"]
    made = words_of("python convert.py --hf-path TARGET -q")
    arguments = ["--hf-path", "TARGET", "-q", *made, "--q-group-size", "32", "--overwrite"]
    assert convert.main(arguments) == 0
    trained = words_of("python -m mlx_redrafter.train")
    assert train.main([*trained, *small]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nq\n"))
    chatting = words_of("python chat.py --model models/my-4bit")
    short = ["--max-tokens", "4", "--no-draft"]
    assert chat_main.main(["--model", "models/my-4bit", *chatting, *short]) == 0
    bundles.make_bundle(place / "models" / "my-bundle")
    assert plan.main([*words_of("python -m mlx_redrafter.plan"), "--tokens", "8"]) == 0
    measured = [*words_of("python -m mlx_redrafter.benchmark"), "--limit", "2", "--repeats", "1"]
    assert benchmark.main([*measured, "--max-tokens", "4", "--beam-width", "1"]) == 0
    capsys.readouterr()


def test_the_list_of_commands_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_redrafter"], capture_output=True, text=True, check=True
    )
    for command in ("chat", "convert", "train", "plan", "benchmark", "server"):
        assert f"  {command}" in done.stdout


def test_the_arguments_of_training_are_named_as_they_are() -> None:
    """Settings are flags; what else the function takes stands on the page."""
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    for name, parameter in inspect.signature(train_drafter).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert f"`{name}`" in page
