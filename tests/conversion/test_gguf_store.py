"""Converted GGUF files are kept in the user's cache, each once and whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_models import tiny_gguf

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf.store import converted
from mlx_redrafter.system.workspace import workspace
from mlx_redrafter.text.places import silent

KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_redrafter.gguf.store import converted
def progress(stage, done, total):
    if done > total / 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
converted(Path(sys.argv[1]), progress, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_interrupted_conversions_leave_nothing_that_counts(tmp_path: Path, signal: str) -> None:
    file, store = tiny_gguf(tmp_path / "t.gguf"), tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(file), str(store), signal]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert list(store.rglob("config.json")) == []
    if signal == "SIGINT":
        assert [p for p in store.rglob("*") if p.is_file()] == []
    out = converted(file, silent, store)
    assert (out / "config.json").is_file()
    assert [p for p in out.parent.iterdir() if p != out] == []


TWO_AT_ONCE = """
import sys
from pathlib import Path
from mlx_redrafter.gguf.store import converted
stages = set()
out = converted(Path(sys.argv[1]), lambda stage, done, total: stages.add(stage), Path(sys.argv[2]))
print(out)
"""


def test_two_processes_convert_a_file_once_for_both(tmp_path: Path) -> None:
    file, store = tiny_gguf(tmp_path / "t [1].gguf"), tmp_path / "store"
    command = [sys.executable, "-c", TWO_AT_ONCE, str(file), str(store)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert outs == {f"{converted(file, silent, store)}\n"}
    assert [path.name for path in next(store.iterdir()).iterdir()] == ["t [1]"]


def test_a_process_waits_for_another_one_that_converts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = tiny_gguf(tmp_path / "t.gguf"), tmp_path / "store"
    converted(file, silent, tmp_path / "other")
    out = store / next((tmp_path / "other").iterdir()).name / "t"
    first = workspace(out, "")
    first.__enter__()
    stages: list[str] = []

    def end(seconds: float) -> None:
        first.__exit__(None, None, None)

    monkeypatch.setattr("mlx_redrafter.gguf.store.time.sleep", end)
    assert converted(file, lambda stage, done, total: stages.append(stage), store) == out
    assert stages[0].startswith("Waiting for another process")


def test_what_killed_conversions_left_of_a_name_with_brackets_goes(tmp_path: Path) -> None:
    out = tmp_path / "a[1]"
    (tmp_path / ".a[1].convert-abcdefgh").mkdir()
    with workspace(out, ""):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_contents_of_the_same_size_and_time_are_converted_anew(tmp_path: Path) -> None:
    file, store = tiny_gguf(tmp_path / "t.gguf"), tmp_path / "store"
    before, told = converted(file, silent, store), file.stat()
    data = bytearray(file.read_bytes())
    data[-1000:-900] = bytes(100)
    file.write_bytes(data)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    after = converted(file, silent, store)
    assert after != before
    assert not before.exists()


def test_without_a_home_directory_convert_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_redrafter.gguf.store.cache_directory", lambda: None)
    with pytest.raises(RedrafterError, match=r"no home directory .* convert\.py"):
        converted(tiny_gguf(tmp_path / "t.gguf"), silent)


def test_a_file_is_converted_once_whatever_leads_to_it(tmp_path: Path) -> None:
    file, store = tiny_gguf(tmp_path / "t.gguf", matrix_type="F32"), tmp_path / "store"
    first = converted(file, silent, store)
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    (tmp_path / "d").mkdir()
    for other in (link, tmp_path / "d" / ".." / "t.gguf"):
        assert converted(other, silent, store) == first


@pytest.mark.parametrize("damage", ["emptied", "cut", "gone", "unsaid"])
def test_what_was_damaged_in_the_cache_is_converted_anew(tmp_path: Path, damage: str) -> None:
    file, store = tiny_gguf(tmp_path / "t.gguf", matrix_type="F32"), tmp_path / "store"
    weights = converted(file, silent, store) / "model-00001.safetensors"
    whole = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    elif damage == "unsaid":
        (weights.parent / "sizes.json").write_text("[]")
    else:
        os.truncate(weights, 0 if damage == "emptied" else len(whole) - 1)
    assert converted(file, silent, store) == weights.parent
    assert weights.read_bytes() == whole
    assert "model-00001.safetensors" in (weights.parent / "sizes.json").read_text()
