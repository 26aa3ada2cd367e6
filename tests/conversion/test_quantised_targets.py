"""-q for a target that is quantised already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversion_models import make_head, write_head, write_target

from mlx_redrafter.conversion import convert
from mlx_redrafter.ui.cli.convert import main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of 4 bits."""
    directory = tmp_path_factory.mktemp("checkpoints")
    convert(
        hf_path=write_target(directory / "full"), mlx_path=directory / "tiny-4bit", quantize=True
    )
    return directory / "tiny-4bit"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("checkpoints") / "head", make_head())


def bits(directory: Path) -> int:
    entry = json.loads((directory / "config.json").read_text())["quantization"]
    return int(entry["bits"])


@pytest.mark.parametrize("flags", [[], ["--q-bits", "8"], ["--q-mode", "mxfp4"]])
def test_it_is_refused_where_it_would_change_nothing(
    tmp_path: Path, quantised: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    out = tmp_path / "out"
    assert main(["--hf-path", str(quantised), "--mlx-path", str(out), "-q", *flags]) == 2
    text = capsys.readouterr().err
    assert "quantised already (4 bits), so -q would change nothing: leave -q out, or" in text
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_all_of_which_is_quantised(
    tmp_path: Path, quantised: Path, head: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(hf_path=quantised, drafter=head, mlx_path=tmp_path / "whole", drafter_q_bits=8)
    flags = ["--hf-path", str(tmp_path / "whole"), "--mlx-path", str(tmp_path / "out"), "-q"]
    assert main(flags) == 2
    assert "so -q would change nothing" in capsys.readouterr().err


def test_a_drafter_may_be_quantised_beside_it(tmp_path: Path, quantised: Path, head: Path) -> None:
    out = tmp_path / "out"
    report = convert(
        hf_path=quantised, drafter=head, mlx_path=out, quantize=True, q_bits=8, check=True
    )
    assert "The target is quantised already (4 bits) and was kept as it is." in report.notes
    assert (bits(out), bits(out / "drafter")) == (4, 8)
    assert report.check is not None
    assert report.check.target_matches is True


def test_no_bundle_is_named_after_bits_that_its_target_has_not(
    tmp_path: Path,
    quantised: Path,
    head: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--hf-path", str(quantised), "--drafter", str(head), "-q"]
    assert main([*flags, "--q-bits", "8"]) == 2
    assert "name it with --mlx-path" in capsys.readouterr().err
    assert main(flags) == 0
    assert bits(tmp_path / "models" / "tiny-4bit-4bit") == 4
