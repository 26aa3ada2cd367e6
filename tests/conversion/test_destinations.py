"""Places that a conversion is asked to write to: links, mount points, names that cannot be."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from conversion_models import make_head, write_head, write_target

from mlx_redrafter.conversion import convert
from mlx_redrafter.ui.cli.convert import main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("checkpoints") / "head", make_head())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that is refused, and which changes nothing here."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def test_the_directory_behind_a_link_is_overwritten(tmp_path: Path, target: Path) -> None:
    real, link = tmp_path / "disk" / "bundle", tmp_path / "out"
    convert(hf_path=target, mlx_path=real)
    link.symlink_to(real)
    for dtype in ("float16", "bfloat16"):
        convert(hf_path=target, mlx_path=link, overwrite=True, dtype=dtype)
        assert link.is_symlink()
        assert not real.is_symlink()
        assert f"torch.{dtype}" not in (real / "config.json").read_text()
        assert (real / "model.safetensors").is_file()
    assert names(tmp_path) == ["disk", "out"]
    assert names(tmp_path / "disk") == ["bundle"]


def test_work_is_done_beside_the_directory_behind_a_link(tmp_path: Path, target: Path) -> None:
    real, link = tmp_path / "disk" / "bundle", tmp_path / "out"
    real.mkdir(parents=True)
    link.symlink_to(real)
    seen: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        seen.update(names(tmp_path / "disk"))
        assert names(tmp_path) == ["disk", "out"]

    convert(hf_path=target, mlx_path=link, overwrite=True, progress=progress)
    assert any(name.startswith(".bundle.convert-") for name in seen)


def test_a_renamed_link_of_an_earlier_version_is_removed(tmp_path: Path, target: Path) -> None:
    real, out, waiting = tmp_path / "real", tmp_path / "out", tmp_path / ".out.replaced"
    convert(hf_path=target, mlx_path=real)
    convert(hf_path=target, mlx_path=out)
    waiting.symlink_to(real)
    convert(hf_path=target, mlx_path=out, overwrite=True)
    assert names(tmp_path) == ["out", "real"]
    assert (real / "model.safetensors").is_file()
    waiting.symlink_to(tmp_path / "nowhere")
    convert(hf_path=target, mlx_path=out, overwrite=True)
    assert names(tmp_path) == ["out", "real"]


def test_the_drafter_behind_a_link_is_overwritten(tmp_path: Path, target: Path, head: Path) -> None:
    bundle, real = tmp_path / "bundle", tmp_path / "disk" / "drafter-v1"
    convert(hf_path=target, mlx_path=bundle)
    convert(drafter=head, mlx_path=bundle)
    real.parent.mkdir()
    (bundle / "drafter").rename(real)
    (bundle / "drafter").symlink_to(real)
    before = names(bundle)
    for bits in (8, 4):
        convert(drafter=head, mlx_path=bundle, overwrite=True, drafter_q_bits=bits)
        assert (bundle / "drafter").is_symlink()
        assert f'"bits": {bits}' in (real / "config.json").read_text()
    assert names(bundle) == before
    assert names(real.parent) == ["drafter-v1"]


@pytest.mark.parametrize("part", ["bundle", "drafter"])
def test_mount_points_are_refused_before_the_work(
    tmp_path: Path,
    target: Path,
    head: Path,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    convert(hf_path=target, drafter=head, mlx_path=bundle)
    mounted = bundle if part == "bundle" else bundle / "drafter"
    source = ("--hf-path", target) if part == "bundle" else ("--drafter", head)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == mounted)
    for more in ((), ("--overwrite",)):
        text = told(capsys, *source, "--mlx-path", bundle, *more)
        assert f"'{mounted}' is a mount point" in text
    assert names(tmp_path) == ["bundle"]


def test_a_drafter_goes_into_a_bundle_that_is_a_mount_point(
    tmp_path: Path, target: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    convert(hf_path=target, mlx_path=bundle)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == bundle)
    before = names(bundle)

    def progress(stage: str, done: int, total: int) -> None:
        assert names(tmp_path) == ["bundle"]  # another disk lies beside it

    convert(drafter=head, mlx_path=bundle, progress=progress)
    convert(drafter=head, mlx_path=bundle, progress=progress, overwrite=True)
    assert names(bundle) == sorted([*before, "drafter"])


def test_mount_points_that_cannot_be_recognised(
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    convert(hf_path=target, mlx_path=out)
    before = names(out)
    rename = Path.rename

    def busy(self: Path, to: Path) -> Path:
        if self == out:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", busy)
    text = told(capsys, "--hf-path", target, "--mlx-path", out, "--overwrite")
    assert "cannot be replaced (Device or resource busy), and nothing was changed" in text
    assert names(tmp_path) == ["out"]
    assert names(out) == before


def test_links_that_lead_nowhere(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    before = names(tmp_path)
    for name in ("dangling", "one"):
        for more in ((), ("--overwrite",)):
            text = told(capsys, "--hf-path", target, "--mlx-path", tmp_path / name, *more)
            assert f"'{tmp_path / name}' is a link that leads nowhere" in text
        assert "cannot be written to" in told(
            capsys, "--hf-path", target, "--mlx-path", tmp_path / "one" / "out"
        )
    assert names(tmp_path) == before


@pytest.mark.parametrize("length", [240, 250, 256, 5000])
def test_names_that_are_too_long(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str], length: int
) -> None:
    text = told(capsys, "--hf-path", target, "--mlx-path", tmp_path / ("n" * length))
    assert "is longer than 230 bytes: choose another --mlx-path" in text
    deep = tmp_path.joinpath(*["n" * 200] * (length // 100))
    if length == 5000:
        assert "too long" in told(capsys, "--hf-path", target, "--mlx-path", deep)
    assert names(tmp_path) == []


def test_the_longest_name_will_do(tmp_path: Path, target: Path) -> None:
    for _ in range(2):
        convert(hf_path=target, mlx_path=tmp_path / ("n" * 230), overwrite=True)
    assert names(tmp_path) == ["n" * 230]


def test_two_dots_are_taken_out_of_paths(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "--hf-path", target, "--mlx-path", tmp_path / "new" / "..")
    assert f"'{tmp_path}' exists already" in text
    assert names(tmp_path) == []
    convert(hf_path=target, mlx_path=tmp_path / "new" / ".." / "out")
    assert names(tmp_path) == ["out"]
    convert(hf_path=target, mlx_path=tmp_path / "out" / "new" / "..", overwrite=True)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("flag", ["--mlx-path", "--hf-path", "--drafter"])
def test_an_empty_place_is_not_the_current_directory(
    target: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    text = told(capsys, "--hf-path", target, flag, "")
    assert f"{flag} is empty: name a place, or leave it out" in text


def test_the_usual_name_is_the_directorys_own(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "mine@home"
    shutil.copytree(target, source)
    (source / "inner").mkdir()
    monkeypatch.chdir(source / "inner")
    for place in ("..", str(source)):
        convert(hf_path=place, overwrite=True)
        assert names(source / "inner" / "models") == ["mine@home"]
