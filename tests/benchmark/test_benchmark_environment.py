"""The circumstances of a measurement, and writing reports."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_redrafter.benchmark.environment import commit_of, environment, linux_power, mac_power
from mlx_redrafter.benchmark.writing import check_writable, write_csv, write_report, write_text
from mlx_redrafter.errors import RedrafterError


def test_the_circumstances_are_all_there():
    found = environment(["run", "--prompts", "my file.txt"]).to_dict()
    assert found["command"] == "python -m mlx_redrafter.benchmark run --prompts 'my file.txt'"
    assert set(found["versions"]) == {"python", "mlx", "mlx_lm", "mlx_redrafter"}
    assert found["versions"]["mlx"] == mx.__version__
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["device"] == str(mx.default_device())
    assert found["blas"]
    assert found["date"][10] == "T"
    json.dumps(found)


def git(directory, *words):
    options = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(directory), *options, *words], check=True, capture_output=True)


def test_a_commit_is_that_of_the_checkout_which_tracks_the_package(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    assert commit_of(package) is None
    git(tmp_path, "init")
    assert commit_of(package) is None, "installed beside somebody else's files"
    git(tmp_path, "add", "package/__init__.py")
    git(tmp_path, "commit", "-m", "m")
    clean = commit_of(package)
    assert clean is not None
    assert len(clean) == 40
    (package / "__init__.py").write_text("a = 2\n")
    assert commit_of(package) == f"{clean}-modified"


def test_the_power_source_as_macos_tells_it():
    told = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t81%; discharging\n"
    assert mac_power(told) == "Battery Power"
    assert mac_power("") is None


def supply(directory, name, **files):
    (directory / name).mkdir()
    for key, text in files.items():
        (directory / name / key).write_text(text + "\n")


def test_the_power_source_as_linux_tells_it(tmp_path):
    assert linux_power(tmp_path / "none") is None
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    supply(tmp_path, "AC", type="Mains", online="0")
    assert linux_power(tmp_path) == "battery, discharging"
    (tmp_path / "AC" / "online").write_text("1\n")
    assert linux_power(tmp_path) == "mains"


class Small:
    def to_dict(self):
        return {"speed": float("nan"), "name": "é"}

    def rows(self):
        return [{"a": 1, "b": None}, {"a": 2, "b": "x,y"}]


def test_reports_are_json_without_nan_and_csv_with_a_header(tmp_path):
    write_report(Small(), tmp_path / "deep" / "r.json", tmp_path / "r.csv")
    assert json.loads((tmp_path / "deep" / "r.json").read_text("utf-8")) == {
        "speed": None,
        "name": "é",
    }
    with (tmp_path / "r.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x,y"}]


def test_a_failed_table_leaves_the_old_one(tmp_path):
    path = tmp_path / "r.csv"
    write_csv(path, [{"a": 1}])
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(path, [{"a": 2}, {"b": 3}])
    assert path.read_text().splitlines() == ["a", "1"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_a_full_disk_did_not_take_is_named():
    full, told = Path("/dev/full"), r"^/dev/full could not be written \(No space left on device\): "
    report = Small()
    for write in (
        lambda: write_report(report, full, None),
        lambda: write_report(report, None, full),
        lambda: write_text(full, "# page"),
    ):
        with pytest.raises(RedrafterError, match=told):
            write()


def test_paths_that_cannot_be_written_are_told_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(None, tmp_path / "new" / "r.json")
    with pytest.raises(RedrafterError, match="named twice"):
        check_writable(tmp_path / "r.json", None, tmp_path / "r.json")
    with pytest.raises(RedrafterError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(RedrafterError, match="is a file"):
        check_writable(tmp_path / "file" / "r.json")
