"""Ctrl-C during a benchmark: what was measured is written and shown, wherever it comes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle

from mlx_redrafter.benchmark import comparison, plots, prompts, sweep, writing
from mlx_redrafter.ui.cli import benchmark as benchmark_cli


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", context=400)
    (directory / "questions.txt").write_text("what is this?\n", "utf-8")
    return directory


@pytest.fixture(autouse=True)
def _ctrl_c_is_heeded() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(bundle: Path, place: Path, command: str = "run", *arguments: object) -> int:
    asked = ["--model", bundle, "--output", place]
    if command != "cost":
        asked += ["--prompts", bundle / "questions.txt", "--max-tokens", 4, "--repeats", 1]
        asked += ["--beam-width", 1, "--beam-length", 2, "--temp", 0, 1]
    return benchmark_cli.main([command, *map(str, [*asked, *arguments])])


def pressing(whole: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
    """The function, at the beginning of whose ``at``-th call Ctrl-C is pressed."""
    calls = 0

    def pressed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(signal.SIGINT)
        return whole(*arguments, **options)

    return pressed


def written(place: Path, command: str = "run") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((place / f"{command}.json").read_text("utf-8"))
    return report


@pytest.mark.parametrize(
    ("module", "name"),
    [(comparison, "conclude"), (writing, "write_report")],
    ids=["while it concludes", "while it writes"],
)
def test_whole_repeats_are_concluded_and_written(
    module: Any,
    name: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, name, pressing(getattr(module, name)))
    assert run(bundle, tmp_path, "run", "--no-copy", "--report", tmp_path / "page.md") == 130
    assert written(tmp_path)["settings"]["temperature"] == 0.0
    assert (tmp_path / "run.csv").is_file()
    assert "## Temperature 0" in (tmp_path / "page.md").read_text("utf-8")
    assert "mlx-lm" in capsys.readouterr().out


def test_the_first_temperature_stays_when_the_second_is_stopped(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prompts, "prepare", pressing(prompts.prepare, at=2))
    assert run(bundle, tmp_path, "run", "--no-copy") == 130
    assert written(tmp_path)["kind"] == "run"
    assert (tmp_path / "run.png").is_file()
    assert "mlx-lm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "name"),
    [("run", "plot_comparison"), ("sweep", "plot_sweep"), ("cost", "plot_costs")],
)
def test_pictures_that_are_stopped_take_nothing_else_along(
    command: str,
    name: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plots, name, pressing(getattr(plots, name)))
    options = {"run": ["--no-copy"], "sweep": [], "cost": ["--contexts", 0]}[command]
    assert run(bundle, tmp_path, command, *options) == 130
    assert written(tmp_path, command)
    assert not list(tmp_path.rglob("*.png"))
    assert capsys.readouterr().out.strip()


def test_a_sweep_stops_after_the_point_that_it_writes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "write_report", pressing(writing.write_report))
    measured = []
    whole = sweep.sweep_shapes

    def counted(*arguments: Any) -> Any:
        for point in whole(*arguments):
            measured.append(point)
            yield point

    monkeypatch.setattr(sweep, "sweep_shapes", counted)
    assert run(bundle, tmp_path, "sweep") == 130
    assert len(measured) == len(written(tmp_path, "sweep")["points"]) == 1
    assert (tmp_path / "sweep.csv").is_file()


def test_before_anything_is_measured_there_is_nothing_to_show(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prompts, "prepare", pressing(prompts.prepare))
    assert run(bundle, tmp_path, "run", "--no-copy") == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].endswith("interrupted before results were shown.")


def test_a_second_ctrl_c_does_not_wait(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = pressing(pressing(comparison.conclude))
    monkeypatch.setattr(comparison, "conclude", twice)
    assert run(bundle, tmp_path, "run", "--no-copy") == 130
    assert not (tmp_path / "run.json").exists()
