"""The benchmark command as people run it, on a tiny random model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from bundles import make_bundle
from planning_machines import CPU, costs_of

from mlx_redrafter import load
from mlx_redrafter.benchmark import curve, plots, precision
from mlx_redrafter.benchmark.categories import categories_of
from mlx_redrafter.benchmark.curve import fitting_contexts
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.ui.cli import benchmark as benchmark_cli

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ("--beam-width", "2", "--beam-length", "2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", context=400)
    rows = [{"question_id": 7, "category": "c", "turns": ["what is this?", "and that?"]}]
    rows.append({"question": "a drafter guesses"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "questions.jsonl").write_text(text, "utf-8")
    return directory


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bare") / "bare", drafter=False)


def call(command, *arguments):
    return benchmark_cli.main([command, *map(str, arguments)])


def quick(command, model, *arguments):
    return call(command, "--model", model, "--max-tokens", 6, "--repeats", 2, *arguments)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_run_compares_and_writes(bundle, bare, tmp_path, capsys):
    options = ("--draft-model", bare, "--num-draft-tokens", 2, 3, "--output", tmp_path / "out")
    extra = ("--other-drafter", bundle / "drafter", "--json", tmp_path / "r.json")
    assert quick("run", bundle, *SHAPE, *options, *extra) == 0
    report = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == report
    assert set(report) == {
        "format", "kind", "environment", "settings", "contestants", "answers",
    }  # fmt: skip
    names = [contestant["name"] for contestant in report["contestants"]]
    other = f"drafted by {bundle / 'drafter'}"
    assert names == [
        "mlx-lm", "plain", "drafted", "copies", other, "two models, 2", "two models, 3",
    ]  # fmt: skip
    for contestant in report["contestants"]:
        assert contestant["tokens_per_second"]["median"] > 0
        assert contestant["first_token_seconds"]["count"] == 6
        assert contestant["peak_memory_bytes"] > 0
        agreement = contestant["agreement_with_plain"]
        if contestant["name"] == "plain":
            assert agreement is None
        else:
            assert (agreement["identical"], agreement["prompts"]) == (3, 3)
    drafted = report["contestants"][2]
    assert len(drafted["stats"]["acceptance_by_depth"]) == 2
    assert set(drafted["ratios"]) == set(names) - {"drafted"}
    assert report["environment"]["command"].startswith("python -m mlx_redrafter.benchmark run")
    rows = rows_of(tmp_path / "out" / "run.csv")
    assert len(rows) == len(report["answers"]) == 7 * 3 * 2
    assert [(row["prompt"], row["turn"]) for row in rows[::7]] == 2 * [
        ("question 7", "1"), ("question 7", "2"), ("line 2", "1"),
    ]  # fmt: skip
    assert [row["contestant"] for row in rows[7:14]] == [*names[1:], names[0]]
    assert is_png(tmp_path / "out" / "run.png")
    shown = capsys.readouterr().out
    assert "3 of 3 equal" in shown
    assert "Best of the two-model runs" in shown


def test_run_says_that_samples_of_mlx_lm_are_not_comparable(bundle, tmp_path, capsys):
    path = tmp_path / "r.json"
    assert quick("run", bundle, *SHAPE, "--temp", 1, "--limit", 1, "--json", path) == 0
    agreements = {
        contestant["name"]: contestant["agreement_with_plain"]
        for contestant in json.loads(path.read_text("utf-8"))["contestants"]
    }
    assert agreements["mlx-lm"]["comparable"] is False
    assert agreements["drafted"]["identical"] == agreements["drafted"]["prompts"] == 2
    assert "cannot be compared token for token" in " ".join(capsys.readouterr().out.split())


def test_run_plans_unless_a_shape_is_given(bundle, tmp_path):
    path = tmp_path / "r.json"
    assert quick("run", bundle, "--limit", 1, "--no-copy", "--json", path) == 0
    _, _, drafted = json.loads(path.read_text("utf-8"))["contestants"]
    assert "planner" in drafted["description"]


def test_run_without_a_drafter_compares_mlx_lm_and_plain(bare, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    assert quick("run", bare, "--prompts", tmp_path / "p.txt") == 0
    shown = capsys.readouterr().out
    assert "mlx-lm" in shown
    assert "drafted" not in shown


def test_run_keeps_whole_repeats_when_interrupted(bundle, tmp_path, monkeypatch):
    from mlx_redrafter.benchmark import measuring

    whole = measuring.measure

    def interrupted(*arguments):
        rounds = whole(*arguments)
        yield next(rounds)
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", interrupted)
    path = tmp_path / "r.json"
    assert quick("run", bundle, *SHAPE, "--json", path) == 130
    assert json.loads(path.read_text("utf-8"))["settings"]["completed_repeats"] == 1


def test_sweep_writes_tables_and_pictures(bundle, tmp_path, capsys):
    grid = ("--beam-width", 2, 1, "--beam-length", 1, 2, "--temp", 0, 1, "--limit", 1)
    precisions = ("--precision", "float32", "bfloat16")
    assert quick("sweep", bundle, *grid, *precisions, "--output", tmp_path) == 0
    report = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert report["complete"] is True
    places = [
        (p["precision"], p["temperature"], p["beam_width"], p["beam_length"])
        for p in report["points"]
    ]
    assert places == [
        (precision, temperature, width, length)
        for precision in ("float32", "bfloat16")
        for temperature in (0.0, 1.0)
        for width in (1, 2)
        for length in (1, 2)
    ]
    rows = rows_of(tmp_path / "sweep.csv")
    assert len(rows) == 16
    assert {"tokens_per_step", "tokens_per_second", "ratio", "plain_tokens_per_second"} <= set(
        rows[0]
    )
    for point, row in zip(report["points"], rows, strict=True):
        assert float(row["ratio"]) == point["ratio"]["median"] > 0
        assert 1 <= point["tokens_per_step"] <= 1 + point["beam_length"]
        if point["precision"] == "float32":
            assert point["identical"] == point["prompts"] == 2
    for name in ("heat-float32", "curves-float32", "heat-bfloat16", "curves-bfloat16"):
        assert is_png(tmp_path / f"{name}.png")
    assert "Best:" in capsys.readouterr().out


def test_sweep_holds_one_model_at_a_time(bundle, tmp_path, monkeypatch):
    load_at, seen = precision.load_at, []

    def watched(*arguments, **options):
        alive = sum(one() is not None for one in seen)
        loaded = load_at(*arguments, **options)
        seen.append(weakref.ref(loaded[0].target.model))
        assert alive == 0, "a model of another precision is still there"
        return loaded

    monkeypatch.setattr(precision, "load_at", watched)
    grid = ("--beam-width", 1, "--beam-length", 1, "--temp", 0, "--limit", 1)
    kinds = ("--precision", "float32", "bfloat16", "4bit")
    assert quick("sweep", bundle, *grid, *kinds, "--json", tmp_path / "s.json") == 0
    assert len(seen) == 3


def test_sweep_keeps_what_it_has_when_interrupted(bundle, tmp_path, monkeypatch, capsys):
    from mlx_redrafter.benchmark import sweep

    whole = sweep.sweep_shapes

    def interrupted(*arguments):
        yield next(whole(*arguments))
        assert len(rows_of(tmp_path / "sweep.csv")) == 1, "written before the next is measured"
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep_shapes", interrupted)
    grid = ("--beam-width", 1, "--beam-length", 1, 2, "--temp", 0, "--limit", 1)
    assert quick("sweep", bundle, *grid, "--output", tmp_path) == 130
    report = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert (report["complete"], len(report["points"])) == (False, 1)
    assert is_png(tmp_path / "heat-stored.png")
    assert "Interrupted after 1 of 2 points" in capsys.readouterr().out


def test_cost_measures_each_context(bundle, tmp_path, capsys):
    assert call("cost", "--model", bundle, "--contexts", 9, 0, "--output", tmp_path) == 0
    report = json.loads((tmp_path / "cost.json").read_text("utf-8"))
    costs = report["costs"]
    assert costs["contexts"] == [0, 9]
    assert costs["sizes"][0] == 1
    rows = rows_of(tmp_path / "cost.csv")
    assert len(rows) == 2 * len(costs["sizes"])
    first = rows[0]
    assert float(first["times_one_token"]) == 1
    even = float(first["seconds"]) / costs["plain"][0]
    assert float(first["tokens_per_step_to_break_even"]) == pytest.approx(even)
    assert is_png(tmp_path / "cost.png")
    assert "ms behind 9" in capsys.readouterr().out


def test_cost_needs_no_drafter(bare, tmp_path, capsys):
    path = tmp_path / "c.json"
    assert call("cost", "--model", bare, "--contexts", 0, "--json", path) == 0
    assert json.loads(path.read_text("utf-8"))["costs"]["draft"] == {}
    assert "drafted level" not in capsys.readouterr().out


@pytest.mark.parametrize("doubtful", [False, True])
def test_cost_says_whether_its_times_are_to_be_believed(
    bare, tmp_path, capsys, monkeypatch, doubtful
):
    monkeypatch.setattr(
        curve, "calibrate", lambda *_, **__: replace(costs_of(CPU), doubtful=doubtful)
    )
    path = tmp_path / "c.json"
    assert call("cost", "--model", bare, "--contexts", 64, "--json", path) == 0
    assert json.loads(path.read_text("utf-8"))["doubtful"] is doubtful
    assert ("contradicted each other" in capsys.readouterr().out) is doubtful


def test_contexts_that_do_not_fit(bundle):
    model, _ = load(bundle, dtype=mx.float32)
    assert fitting_contexts(model, None) == (0,)
    assert fitting_contexts(model, [336, 5, 5]) == (5, 336)
    with pytest.raises(RedrafterError, match="--beyond-limit"):
        fitting_contexts(model, [337])
    assert fitting_contexts(model, [1000], beyond=True) == (1000,)
    model.config["max_position_embeddings"] = 40
    with pytest.raises(RedrafterError, match=r"made for 40 tokens.*--beyond-limit"):
        fitting_contexts(model, None)


def refuse(capsys, command, *arguments):
    """Run a command line that cannot go on; return its one sentence."""
    try:
        code = call(command, *arguments)
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_bad_input_is_one_sentence_with_code_2(bundle, bare, tmp_path, capsys):
    assert "No such file" in refuse(capsys, "run", "--model", bundle, "--prompts", "none.jsonl")
    assert "--prompts" in refuse(capsys, "run", "--model", bare)
    assert "There is no ./none" in refuse(
        capsys, "run", "--model", "./none", "--prompts", bundle / "questions.jsonl"
    )
    assert "is a directory" in refuse(capsys, "cost", "--model", bundle, "--json", tmp_path)
    assert "at least 1" in refuse(capsys, "run", "--repeats", 0)
    assert "invalid choice" in refuse(capsys, "sweep", "--precision", "3bit")
    assert "invalid choice" in refuse(capsys, "walk")
    assert "unrecognized" in refuse(capsys, "cost", "--temp", 1)


def test_sweeping_needs_a_drafter_that_knows_enough_tokens(bundle, bare, capsys):
    prompts = ("--prompts", bundle / "questions.jsonl")
    assert "nothing to sweep" in refuse(capsys, "sweep", "--model", bare, *prompts)
    wide = ("--beam-width", 1000)
    assert "smaller widths" in refuse(capsys, "sweep", "--model", bundle, *wide)


def test_pictures_without_matplotlib_are_refused_beforehand(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = refuse(capsys, "sweep", "--model", bundle, "--output", tmp_path)
    assert "pip install matplotlib" in told
    assert "--no-plots" in told
    with pytest.raises(RedrafterError):
        plots.check_matplotlib()


def test_without_a_command_it_says_which_there_are(capsys):
    with pytest.raises(SystemExit) as leaving:
        benchmark_cli.main([])
    assert leaving.value.code == 2
    assert "run, sweep or cost" in capsys.readouterr().err


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "mlx_redrafter.benchmark", "sweep", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--beam-width" in done.stdout


@pytest.fixture(scope="module")
def sorted_questions(tmp_path_factory):
    """A file as Spec-Bench has it: MT-bench's categories, and others."""
    path = tmp_path_factory.mktemp("prompts") / "question.jsonl"
    kinds = ("writing", "math", "translation", "translation", "rag")
    rows = [
        {"question_id": n, "category": kind, "turns": [f"what is {n}?"]}
        for n, kind in enumerate(kinds)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_page_is_written_though_nobody_reads_what_is_shown(bundle, tmp_path, monkeypatch):
    def nobody(*_report):
        raise BrokenPipeError

    monkeypatch.setattr("mlx_redrafter.ui.cli.benchmark_view.run_report", nobody)
    monkeypatch.setattr("mlx_redrafter.ui.entry._drop", lambda _stream: None)
    page = tmp_path / "page.md"
    assert quick("run", bundle, *SHAPE, "--temp", 0, "--no-copy", "--report", page) == 0
    assert "## Temperature 0" in page.read_text("utf-8")


def test_run_by_category_at_both_temperatures(bundle, sorted_questions, tmp_path, capsys):
    page, path = tmp_path / "page.md", tmp_path / "r.json"
    options = ("--prompts", sorted_questions, "--report", page, "--json", path, "--no-copy")
    assert quick("run", bundle, *SHAPE, *options) == 0
    report = json.loads(path.read_text("utf-8"))
    assert report["kind"] == "runs"
    assert [run["settings"]["temperature"] for run in report["runs"]] == [0.0, 1.0]
    text = page.read_text("utf-8")
    for line in ("## Temperature 0", "## Temperature 1", "| multi-turn conversation | 2 |",
                 "| translation | 2 |", "| rag | 1 |", "| **all** | 5 |"):  # fmt: skip
        assert line in text
    assert "question.jsonl" in text
    assert str(sorted_questions.parent) not in text.replace(
        report["runs"][0]["environment"]["command"], ""
    )
    assert "5 of 5 texts equal plain's" in text
    shown = " ".join(capsys.readouterr().out.split())
    assert "multi-turn conversation" in shown
    assert "drafted: tokens/step" in shown
    # mlx-lm counts no steps, and is what speed is compared with.
    for drawn in (text, shown):
        assert "plain: × mlx-lm" in drawn
        assert "mlx-lm: tokens/step" not in drawn
    # The whole is not the mean of its parts but counts every token once.
    drafted = report["runs"][0]["contestants"][2]["stats"]
    row = next(line for line in text.splitlines() if line.startswith("| **all**"))
    assert f"{drafted['tokens_per_step']:.2f}" in row


def test_one_temperature_where_nothing_is_sorted(bundle, tmp_path):
    path = tmp_path / "r.json"
    assert quick("run", bundle, *SHAPE, "--limit", 1, "--json", path) == 0
    assert json.loads(path.read_text("utf-8"))["kind"] == "run"


def test_mt_bench_alone_keeps_its_categories():
    assert categories_of(["writing", "math"]) == ["writing", "math"]
    assert categories_of(["writing", "qa"]) == ["multi-turn conversation", "qa"]


@pytest.mark.parametrize("flag", ["--json", "--csv", "--output", "--report", "--prompts"])
def test_an_empty_place_is_not_the_current_directory(flag, capsys):
    with pytest.raises(SystemExit) as left:
        call("run", flag, "")
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {flag}: A path or name that was given is empty" in told
