"""Files are whole or not there, and nothing of killed writers stays."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_redrafter.benchmark.writing import check_writable
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system import files
from mlx_redrafter.system.disk import DiskError, writing
from mlx_redrafter.system.files import atomic_path, local_path, only_one, write_json
from mlx_redrafter.system.workspace import workspace


def test_a_name_that_the_encoding_has_not_is_told_in_a_sentence() -> None:
    """As é under LC_ALL=C; half a character is in no encoding."""
    with pytest.raises(RedrafterError, match="letters that no name can have"):
        local_path("talk-\ud83d.json")


def killed_while(body: str, *arguments: object) -> None:
    """Run a program up to where it says so, and kill it."""
    program = f"import sys, time\n{body}\n    print('there', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.kill()
    process.wait()


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    killed_while(
        "from pathlib import Path\n"
        "from mlx_redrafter.system.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')",
        path,
    )
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".figures-notes.json").write_text("of someone else")
    write_json(path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".figures-notes.json", "figures.json"]


def test_what_another_writer_is_about_stays(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with atomic_path(path) as temporary:
        temporary.write_text("mine")
        write_json(path, {"other": 1})
        assert temporary.exists()
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_one_processs_until_it_ends(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "run"
    with only_one(directory, "training"):
        holding = "from pathlib import Path\nfrom mlx_redrafter.system.files import only_one\n"
        take = f"{holding}with only_one(Path(sys.argv[1]), 'training'): pass"
        other = subprocess.run(
            [sys.executable, "-c", f"import sys\n{take}", directory],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Another training is under way" in other.stderr
        assert "process " in other.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was written, so nothing stays"
    killed_while(
        "from pathlib import Path\n"
        "from mlx_redrafter.system.files import only_one\n"
        "with only_one(Path(sys.argv[1]), 'training'):\n"
        "    pass",
        directory,
    )
    with only_one(directory, "training"):
        pass


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RedrafterError, match="cannot be written"),
        only_one(tmp_path / "file" / "run", "training"),
    ):
        pass


def test_a_lock_that_cannot_be_signed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, words: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    place = tmp_path / "run"
    told = pytest.raises(RedrafterError, match=r"run cannot be written \(No space")
    with told, only_one(place, "training"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, words in (("file", "a file, not a directory"), ("link", "a link that leads nowhere")):
        place, told = tmp_path / name / "a" / "b", f"/{name} is {words}"
        with pytest.raises(RedrafterError, match=told), only_one(place, "training"):
            pass
        with pytest.raises(RedrafterError, match=told), workspace(place):
            pass
        with pytest.raises(RedrafterError, match=told):
            check_writable(place)
        with pytest.raises(DiskError, match=told), writing(place):
            write_json(place, {})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "quota"), RuntimeError("[write] failed")])
def test_a_disk_may_be_full_only_where_nothing_else_is_known(
    error: Exception, tmp_path: Path
) -> None:
    told = r": make room on that disk, or choose another directory\.$"
    with pytest.raises(DiskError, match=told), writing(tmp_path / "file"):
        raise error


def test_a_directory_in_a_files_place_is_told(tmp_path: Path) -> None:
    told = r"\(Is a directory\): name a file in it, or choose another directory\.$"
    with pytest.raises(DiskError, match=told), writing(tmp_path):
        write_json(tmp_path, {})


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EROFS])
def test_room_helps_only_where_a_disk_is_full(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"\): choose another directory\.$"), writing(tmp_path):
        raise OSError(number, "no")


def test_what_fails_leaves_no_directory_that_it_made(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    for kind in (OSError, KeyboardInterrupt):
        for made in (atomic_path(place), workspace(place), only_one(place, "training")):
            with pytest.raises(kind), made:
                raise kind
            assert list(tmp_path.iterdir()) == []
    writer = atomic_path(place)
    writer.__enter__()
    (place.parent / "of another").touch()
    assert not writer.__exit__(OSError, OSError("full"), None)
    assert list(place.parent.iterdir()) == [place.parent / "of another"]


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system have none."""

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)


def test_a_place_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    (tmp_path / ".figures-abcdefgh.json").write_text("perhaps another writer's")
    write_json(tmp_path / "figures.json", {})
    with only_one(tmp_path / "run", "training"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {".figures-abcdefgh.json", "figures.json"}


def test_without_locks_a_running_conversion_keeps_its_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    out = tmp_path / "out"
    with workspace(out) as first:
        (first / "weights").write_text("half of them")
        with workspace(out) as second:
            assert second != first
        assert (first / "weights").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path: Path, there: bool) -> None:
    real, link = tmp_path / "data" / "kept.json", tmp_path / "work" / "figures.json"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "data" / "kept.json")
    if there:
        real.parent.mkdir()
        real.write_text("old")
        real.chmod(0o640)
    check_writable(link)
    with pytest.raises(RedrafterError, match="named twice"):
        check_writable(real, link)
    write_json(link, {})
    assert link.is_symlink()
    assert real.read_text("utf-8") == "{}\n"
    assert not there or stat.S_IMODE(real.stat().st_mode) == 0o640
    assert list(link.parent.iterdir()) == [link]
    assert list(real.parent.iterdir()) == [real]


def test_the_files_of_the_hubs_cache_are_not_written(tmp_path: Path) -> None:
    blob, link = tmp_path / "blobs" / "0a1b", tmp_path / "snapshots" / "main" / "config.json"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_text("theirs")
    link.symlink_to(Path("..") / ".." / "blobs" / "0a1b")
    write_json(link, {})
    assert not link.is_symlink()
    assert (link.read_text("utf-8"), blob.read_text("utf-8")) == ("{}\n", "theirs")


def test_a_temporary_that_was_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its creation and its lock another writer may find it."""
    locked = files.lock

    def too_late(handle: int) -> bool | None:
        monkeypatch.setattr(files, "lock", locked)
        next(tmp_path.iterdir()).unlink()
        return locked(handle)

    monkeypatch.setattr(files, "lock", too_late)
    write_json(tmp_path / "figures.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


def test_new_files_have_the_users_permissions_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("{}")
    old.chmod(0o640)
    before = os.umask(0o077)
    try:
        write_json(old, {})
        write_json(new, {})
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in (old, new)] == ["0o640", "0o600"]


def test_pipes_and_devices_are_written_into_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        check_writable(pipe)
        write_json(pipe, [1])
        assert reader.communicate()[0].split() == ["[", "1", "]"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_what_goes_to_stdout_stands_behind_what_is_there(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from mlx_redrafter.system.files import write_json\n"
        "print('before', flush=True)\n"
        "write_json(Path('/dev/stdout'), [1])\n"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text().split() == ["before", "[", "1", "]"]
