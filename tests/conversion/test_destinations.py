"""Places that a conversion is asked to write to: links, mount points, names that cannot be."""

from __future__ import annotations

import errno
import os
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
