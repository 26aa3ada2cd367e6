"""Commands of README and docs that take seconds, run on tiny models: conversions, experiments."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import bundles
import pytest
from conversion_models import make_head, torch, write_head, write_target
from gguf_models import tiny_gguf
from pages import commands
from scripts import EXPERIMENTS, load_script

from mlx_redrafter.ui.cli import convert

# What would be fetched from the Hub.
FETCHED = ("owner/", "mlx-community/")
# Behind a command as it stands; of flags given twice the last one holds.
SHORTER = {
    "batches": "--model MODEL --prompts FILE --count 2 --repeats 1 --max-tokens 4 --batches 1 2 "
    "--beam-width 1 --beam-length 2",
    "copies": "--model MODEL --tasks FILE --count 1 --repeats 1 --max-tokens 4 --fixed 1 2 2",
    "copies_replay": "--model MODEL --count 1 --max-tokens 4 --texts TEXTS",
    "loop": "--model MODEL --repeats 2 --beam-width 1 --beam-length 2",
    "misses": "--model MODEL --prompts FILE --limit 1 --max-tokens 4 --temp 0 --length 3",
    "pocket": "--model MODEL --prompts FILE --count 1 --repeats 1 --max-tokens 4 --temps 0 "
    "--beam-width 1 --beam-length 2",
}


def conversions() -> list[list[str]]:
    """Arguments of each conversion of something that is here."""
    found = [words[1:] for _, words in commands() if words[0] == "convert.py" and len(words) > 2]
    return [words for words in found if not any(word.startswith(FETCHED) for word in words)]


def experiments() -> list[list[str]]:
    """A command of each experiment that can be made short."""
    found = {}
    for _, words in commands():
        name = Path(words[0]).stem
        if words[0].startswith("experiments/") and name in SHORTER and "..." not in words:
            found.setdefault(name, words)
    return list(found.values())


def test_there_are_conversions_and_experiments() -> None:
    assert len(conversions()) > 6
    assert {Path(words[0]).stem for words in experiments()} == SHORTER.keys()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the names of the pages lead to tiny checkpoints."""
    place = tmp_path_factory.mktemp("checkpoints")
    write_target(place / "TARGET")
    write_head(place / "DRAFTER", make_head())
    write_head(place / "my-drafter", make_head())
    head = make_head()
    torch.save({"state_dict": head.state_dict()}, place / "drafter.pt")
    tiny_gguf(place / "model.Q4_0.gguf")
    # Dequantised like a K-quant, whose blocks are longer than these rows.
    tiny_gguf(place / "model.Q4_K_M.gguf", matrix_type="Q5_0")
    target = ["--hf-path", str(place / "TARGET")]
    for name in ("models/mine", "BUNDLE"):
        assert convert.main([*target, "--mlx-path", str(place / name)]) == 0
    return place


@pytest.mark.parametrize("words", conversions(), ids=" ".join)
def test_a_conversion_runs(
    words: list[str],
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    shutil.copytree(checkpoints, place)
    monkeypatch.chdir(place)
    arguments = [*words]
    if "--hf-path" in words:
        arguments.append("--overwrite")
    if "-q" in words:
        arguments += ["--q-group-size", "32"]
    assert convert.main(arguments) == 0, capsys.readouterr().err
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Written to ")]
    out = Path(told[-1].removeprefix("Written to "))
    if "--mlx-path" in words:
        assert out == Path(words[words.index("--mlx-path") + 1])
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert ("quantization" in config) == ("-q" in words or "model.Q4_0.gguf" in words)
    assert (out / "drafter").is_dir() == ("--drafter" in words)


@pytest.mark.parametrize("words", experiments(), ids=" ".join)
def test_an_experiment_runs(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = Path(words[0]).stem
    bundles.make_bundle(tmp_path / "MODEL")
    rows = [{"prompt": f"the quick brown fox {i}"} for i in range(4)]
    (tmp_path / "FILE").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    given = [word for word in words[1:] if word != "--planned"]  # which measures for a minute
    monkeypatch.setattr(sys, "argv", [words[0], *given, *SHORTER[name].split()])
    load_script(name, monkeypatch).main()
    assert capsys.readouterr().out.strip()
