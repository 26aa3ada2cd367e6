"""Disks that turn full while a benchmark measures: what was measured is shown all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle

from mlx_redrafter.benchmark import plots, writing
from mlx_redrafter.ui.cli import benchmark as benchmark_cli
from mlx_redrafter.ui.output import SafeConsole

COMMANDS = ["run", "sweep", "cost"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", context=400)
    (directory / "questions.txt").write_text("what is this?\n", "utf-8")
    return directory


def run(bundle: Path, command: str, *arguments: object) -> int:
    asked: list[object] = [command, "--model", bundle, *arguments]
    if command == "cost":
        return benchmark_cli.main([*map(str, asked), "--contexts", "0"])
    asked += ["--prompts", bundle / "questions.txt", "--max-tokens", 4, "--repeats", 1]
    asked += ["--beam-width", 1, "--beam-length", 2]
    return benchmark_cli.main([*map(str, asked), *(["--no-copy"] if command == "run" else [])])


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Endings of the names of files that no longer find room."""
    endings: set[str] = set()
    whole = writing.atomic_path

    @contextmanager
    def narrow(path: Path) -> Iterator[Path]:
        if path.suffix in endings:
            raise OSError(28, "No space left on device")
        with whole(path) as temporary:
            yield temporary

    def narrow_json(path: Path, value: Any) -> None:
        with narrow(path) as temporary:
            temporary.write_text(json.dumps(value), "utf-8")

    monkeypatch.setattr(writing, "atomic_path", narrow)
    monkeypatch.setattr(writing, "write_json", narrow_json)
    monkeypatch.setattr(plots, "atomic_path", narrow)
    return endings


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", [".json", ".csv", ".png"])
def test_results_are_shown_and_every_other_file_is_written(
    command: str,
    ending: str,
    full: set[str],
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full.add(ending)
    assert run(bundle, command, "--output", tmp_path) == 2
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert "could not be written (No space left on device)" in shown.err.splitlines()[-1]
    written = {path.suffix for path in tmp_path.iterdir()}
    assert written == {".json", ".csv", ".png"} - {ending}


def test_the_page_takes_nothing_along(
    full: set[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full.add(".md")
    page, place = tmp_path / "page.md", tmp_path / "out"
    assert run(bundle, "run", "--report", page, "--output", place) == 2
    shown = capsys.readouterr()
    assert "mlx-lm" in shown.out
    assert f"{page} could not be written" in shown.err.splitlines()[-1]
    assert {path.suffix for path in place.iterdir()} == {".json", ".csv", ".png"}


def test_a_disk_that_has_room_again_is_no_error(
    full: set[str], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.add(".json")
    whole, calls = writing.write_report, []

    def freed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 2:  # JSON and CSV of the first point
            full.clear()
        whole(*arguments)

    monkeypatch.setattr(writing, "write_report", freed)
    assert run(bundle, "sweep", "--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv",
               "--temp", 0, 1) == 0  # fmt: skip
    assert len(json.loads((tmp_path / "s.json").read_text("utf-8"))["points"]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_was_not_written_is_told_though_nobody_reads(
    command: str, full: set[str], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SafeConsole.print

    def left(console: SafeConsole, *what: Any, **how: Any) -> None:
        if not console.stderr:
            raise BrokenPipeError
        whole(console, *what, **how)

    full.add(".json")
    monkeypatch.setattr(SafeConsole, "print", left)
    assert run(bundle, command, "--output", tmp_path) == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".png"}
