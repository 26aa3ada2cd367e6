"""Interrupted, killed, overwritten: OUT is either as it was or complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from conversion_models import make_head, torch, write_head, write_target
from huggingface_hub.errors import HfHubHTTPError

from mlx_redrafter.conversion import convert, writing
from mlx_redrafter.conversion.report import silent
from mlx_redrafter.conversion.torch_files import torch_to_safetensors
from mlx_redrafter.conversion.writing import write_model
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system import workspace as workspace_module
from mlx_redrafter.system.workspace import publish, workspace
from mlx_redrafter.ui.cli.convert import main
from mlx_redrafter.ui.entry import INTERRUPTED

pytestmark = pytest.mark.torch
STAGES = ["Reading PyTorch weights", "Checking the target", "Writing the target"]
STAGES += ["Checking the drafter", "Writing the drafter"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama", layout="bin")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("checkpoints") / "head", make_head())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones included."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


KILLED = """
import os, signal, sys
from mlx_redrafter.conversion import convert
target, head, out, stage = sys.argv[1:]
def progress(now, done, total):
    if now == stage:
        os.kill(os.getpid(), signal.SIGKILL)
convert(hf_path=target, drafter=head, mlx_path=out, overwrite=True, progress=progress)
"""


@pytest.mark.parametrize("stage", ["Reading PyTorch weights", "Writing the drafter"])
def test_killed_conversion(tmp_path: Path, target: Path, head: Path, stage: str) -> None:
    out = tmp_path / "out"
    convert(hf_path=target, drafter=head, mlx_path=out)
    before = contents(out)
    done = run_python(KILLED, target, head, out, stage)
    assert done.returncode == -9, done.stderr
    assert contents(out) == before
    left = [path for path in tmp_path.iterdir() if path != out]
    assert [path.name.startswith(".out.convert-") for path in left] == [True]
    # A later run clears what the killed one left.
    convert(hf_path=target, drafter=head, mlx_path=out, overwrite=True)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("existing", [False, True])
def test_interruption(tmp_path: Path, target: Path, head: Path, stage: str, existing: bool) -> None:
    out = tmp_path / "out"
    if existing:
        convert(hf_path=target, drafter=head, mlx_path=out, dtype="float16")
    before = contents(tmp_path)

    def progress(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(hf_path=target, drafter=head, mlx_path=out, overwrite=True, progress=progress)
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([out] if existing else [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_ended_leaves_nothing(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    monkeypatch.setattr(
        "mlx_redrafter.conversion.pipeline._publish", lambda *_: os.kill(os.getpid(), number)
    )
    previous = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end:
            main(["--hf-path", str(target), "--mlx-path", str(tmp_path / "out")])
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, previous)
    assert end.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_interrupted_command(
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "save_shard", interrupt)
    code = main(["--hf-path", str(target), "--mlx-path", str(tmp_path / "out")])
    assert code == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys
from mlx_redrafter.ui.cli.convert import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_full_disk(tmp_path: Path, target: Path, head: Path, kind: str) -> None:
    source = target if kind == "bin" else write_target(tmp_path / "source")
    out = tmp_path / "out"
    convert(hf_path=source, drafter=head, mlx_path=out)
    before = contents(tmp_path)
    flags = ["--hf-path", source, "--drafter", head, "--mlx-path", out, "--overwrite"]
    # No file may grow beyond the limit, which the system reports as it reports a full disk.
    done = run_python(FULL, 100_000, *flags)
    assert done.returncode == 2, done.stderr
    assert "is full, and nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


def test_too_little_space(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(workspace_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RedrafterError, match="are free"):
        convert(hf_path=target, mlx_path=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_replacement_cut_in_half_is_undone(tmp_path: Path) -> None:
    out, waiting = tmp_path / "out", tmp_path / ".out.replaced"
    waiting.mkdir()
    (waiting / "old").write_text("kept")
    with workspace(out):
        assert (out / "old").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [out]


def test_failed_rename_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, finished = tmp_path / "out", tmp_path / "finished"
    out.mkdir()
    (out / "old").write_text("kept")
    finished.mkdir()
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self == finished:
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RedrafterError, match=r"cannot be replaced \(no\), and nothing was changed"):
        publish(finished, out)
    assert (out / "old").read_text() == "kept"


def test_running_conversion_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    busy = tmp_path / ".out.convert-busy"
    busy.mkdir()
    handle = os.open(busy, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RedrafterError, match="Another conversion"), workspace(out):
            pass
        assert busy.is_dir()
    finally:
        os.close(handle)
    with workspace(out):
        assert not busy.exists()


def test_existing_output(tmp_path: Path, target: Path, head: Path) -> None:
    out = tmp_path / "out"
    convert(hf_path=target, drafter=head, mlx_path=out)
    before = contents(out)
    for options, expected in (
        ({"hf_path": target}, "exists already: pass --overwrite"),
        ({"drafter": head}, "has a drafter already: pass --overwrite"),
        ({"hf_path": target, "overwrite": True}, "would delete the drafter"),
        ({"hf_path": out, "overwrite": True}, "overwritten by its own conversion"),
        ({"hf_path": out}, "overwritten by its own conversion"),
    ):
        with pytest.raises(RedrafterError, match=expected):
            convert(mlx_path=out, **options)  # type: ignore[arg-type]
        assert contents(out) == before
    convert(drafter=head, mlx_path=out, overwrite=True, drafter_q_bits=8)
    assert contents(out) != before
    assert list(tmp_path.iterdir()) == [out]
    # The drafter inside is kept by naming it, though its directory is replaced meanwhile.
    kept = (out / "drafter" / "model.safetensors").read_bytes()
    convert(hf_path=target, drafter=out / "drafter", mlx_path=out, overwrite=True, check=True)
    assert (out / "drafter" / "model.safetensors").read_bytes() == kept


def test_foreign_directories_are_not_overwritten(tmp_path: Path, target: Path, head: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    for overwrite in (False, True):  # nobody is told to pass --overwrite in vain
        with pytest.raises(RedrafterError, match="not a model directory"):
            convert(hf_path=target, mlx_path=out, overwrite=overwrite)
    with pytest.raises(RedrafterError, match="no bundle"):
        convert(drafter=head, mlx_path=out)
    assert (out / "thesis.txt").read_text() == "the only copy"


def test_own_text_in_the_card_is_kept(tmp_path: Path, target: Path, head: Path) -> None:
    out = tmp_path / "out"
    convert(hf_path=target, drafter=head, mlx_path=out)
    card = out / "README.md"
    card.write_text(card.read_text() + "\n## Mine\n\nOwn words.\n")
    convert(drafter=head, mlx_path=out, overwrite=True, drafter_q_bits=4)
    text = card.read_text()
    assert "Own words." in text
    assert text.count("## Drafter") == 1


def test_default_output(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(hf_path=target)
    convert(hf_path=target, quantize=True)
    convert(hf_path=target, quantize=True, q_mode="mxfp4")
    convert(hf_path=target, quantize=True, quant_predicate="mixed_3_4", q_bits=4)
    made = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert made == ["tiny-llama", "tiny-llama-4bit", "tiny-llama-mixed_3_4", "tiny-llama-mxfp4"]


def test_shards(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(64, 64) for _ in range(4)]

    model = Model()
    expected = model.layers[3].weight + 0
    seen: list[tuple[int, int]] = []
    write_model(
        model,
        {"model_type": "none"},
        tmp_path,
        lambda _, done, total: seen.append((done, total)),
        "Writing",
        shard_bytes=2 * 65 * 64 * 4,
    )
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    stored = mx.load(str(tmp_path / files[1]))
    assert mx.array_equal(stored["layers.3.weight"], expected)
    assert seen[-1][0] == seen[-1][1]


def test_torch_groups(tmp_path: Path, target: Path) -> None:
    files = torch_to_safetensors(
        (target / "pytorch_model.bin",), tmp_path, silent, group_bytes=60_000
    )
    assert len(files) > 3
    found: dict[str, mx.array] = {}
    for path in files:
        found |= mx.load(str(path))
    tensors = torch.load(target / "pytorch_model.bin", weights_only=True)
    assert found.keys() == tensors.keys()


@pytest.mark.parametrize("repo", ["", "a/b/c", "two words/x", "-x/y", "me/x--y"])
def test_a_repository_that_no_hub_has_is_refused_before_anything_is_written(
    tmp_path: Path, target: Path, repo: str
) -> None:
    with pytest.raises(RedrafterError, match=r"--upload-repo is .*write user/name"):
        convert(hf_path=target, mlx_path=tmp_path / "out", upload_repo=repo)
    assert not (tmp_path / "out").exists()


def test_upload(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Api:
        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            calls.append(f"create {repo_id}")

        def upload_folder(self, folder_path: Path, repo_id: str) -> None:
            if repo_id == "me/forbidden":
                raise OSError("not allowed\ndetails")
            if repo_id == "me/offline":  # as the Hub's own HTTP library says it
                raise HfHubHTTPError.__bases__[0]("no answer")
            calls.append(f"upload {folder_path.name}")

    monkeypatch.setattr("mlx_redrafter.conversion.pipeline.HfApi", Api)
    report = convert(hf_path=target, mlx_path=tmp_path / "out", upload_repo="me/tiny")
    assert report.uploaded == "me/tiny"
    assert calls == ["create me/tiny", "upload out"]
    with pytest.raises(RedrafterError, match=r"complete at .*not allowed"):
        convert(hf_path=target, mlx_path=tmp_path / "two", upload_repo="me/forbidden")
    mlx_lm.load(str(tmp_path / "two"))
    with pytest.raises(RedrafterError, match=r"complete at .*no answer"):
        convert(hf_path=target, mlx_path=tmp_path / "three", upload_repo="me/offline")
