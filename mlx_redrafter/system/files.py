"""Writing files so that an interrupted run leaves either the old file or the new one."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import RedrafterError
from .directories import made_directory, missing_directories, remove_empty

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


def local_path(path: str | Path) -> Path:
    """A path with a home directory in place of ~.

    Raises:
        RedrafterError: If there is no such home, or the path is none that a system could have.
    """
    if not isinstance(path, str | os.PathLike):
        raise RedrafterError(f"A path has to be text or a Path, and is {path!r:.100}.")
    if path == "":  # a shell's unset variable; Path would take it for the current directory
        raise RedrafterError(
            "A path or name that was given is empty: write it out, or leave the option out."
        )
    if "\0" in str(path):
        raise RedrafterError(f"{path} holds a zero byte, which no path can: write it without.")
    try:
        os.fsencode(path)
        return Path(path).expanduser()
    except UnicodeEncodeError:  # under LC_ALL=C, or half a character
        raise RedrafterError(
            f"{path} has letters that no name can have in this environment's encoding "
            f"({sys.getfilesystemencoding()}): choose another name, or a locale of UTF-8."
        ) from None
    except RuntimeError:
        raise RedrafterError(
            f"{path} begins with a home directory that is not known here: write the path out."
        ) from None


def require_utf8(path: Path) -> None:
    """Refuse a path that mlx cannot open: it takes names in UTF-8 alone.

    Raises:
        RedrafterError: Naming the path.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise RedrafterError(
            f"'{path}' has a name that is no UTF-8, which mlx cannot open: give it another one."
        ) from None


def cache_directory() -> Path | None:
    """Where measurements and conversions are kept; None where the user has no home directory."""
    try:
        return Path.home() / ".cache" / "mlx_redrafter"
    except RuntimeError:  # a service's user
        return None


def is_there(path: Path) -> bool:
    """Whether something is at a path; not at one that is too long or holds a zero byte."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def is_file(path: Path) -> bool:
    """Whether a file is at a path; not behind a directory that one may not enter."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def require_reach(path: Path) -> None:
    """Refuse a path behind a directory that one may not enter; nothing at all may be there.

    Raises:
        RedrafterError: Naming the path.
    """
    try:
        path.stat()
    except PermissionError as error:
        raise RedrafterError(f"{out_of_reach(error)}.") from None
    except (OSError, ValueError):
        pass  # who opens it says what is wrong


def out_of_reach(error: PermissionError) -> str:
    """What to say of a file or directory that the user may not look into."""
    return (
        f"'{error.filename}' cannot be reached ({error.strerror}): check the permissions of it and "
        "of the directories above it"
    )


def size_words(count: float) -> str:
    """Bytes in three digits or so, with a unit in which they are not nothing."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"


LOCK_FILE = ".lock"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that is renamed onto it when the block succeeds.

    The temporary name keeps the suffix, since some writers choose a format or append one by it.
    What writers of the same file that were killed have left is removed. A file that is replaced
    keeps its permissions, a new one has those that the user gives to new files. A link stays, and
    what it leads to is replaced; only one into the Hub's cache is replaced itself. What is no file,
    such as a pipe or a device, is written into. Missing directories are made, and are gone again
    where the block fails.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as directory:
            temporary = Path(directory) / f"whole{path.suffix}"
            yield temporary
            with path.open("ab") as stream:  # stdout may be a file, whose beginning stays
                stream.write(temporary.read_bytes())
        return
    path = behind_link(path)
    with made_directory(path.parent):
        _remove_abandoned(path)
        handle, temporary = _make_temporary(path)
        try:
            yield temporary
            with suppress(FileNotFoundError):  # a new file has its own already
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


def behind_link(path: Path) -> Path:
    """Where a file really lies, or is to lie."""
    if not path.is_symlink():
        return path
    real = Path(os.path.realpath(path))
    # Snapshots of the Hub share the files of its cache, which are named by what they hold.
    return path if real.parent.name == "blobs" else real


def is_stream(path: Path) -> bool:
    """Whether a path leads to a pipe, a device or an open file, and not to one of its own."""
    if not is_there(path) or path.is_dir():
        return False
    place = path.parent.resolve()
    return not path.is_file() or place == Path("/dev") or place.is_relative_to("/proc")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _prefix(path: Path) -> str:
    return f".{path.stem}-"


def _make_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, see :func:`make_locked`.

    With the permissions that the user gives to new files, which ``tempfile`` does not; what takes
    the place of another file is the user's alone until it has that one's.
    """
    permissions = 0o600 if path.exists() else 0o666

    def make() -> tuple[int, Path]:
        while True:
            name = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}{path.suffix}")
            with suppress(FileExistsError):
                return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions), name

    return make_locked(make)


def make_locked(make: Callable[[], tuple[int, Path]]) -> tuple[int, Path]:
    """Make a file or directory, locked as long as it is open; a killed process's is not.

    Args:
        make: Makes a new one, and opens it.
    """
    while True:
        handle, path = make()
        # Another writer may have taken it for abandoned before it was locked.
        if lock(handle) is not False and path.exists():
            return handle, path
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove temporaries of ``path`` that no process holds any longer."""
    if fcntl is None:
        return
    made = len(_prefix(path)) + 8 + len(path.suffix)  # eight letters are its own
    with suppress(OSError):
        for left in path.parent.iterdir():
            name = left.name
            ours = name.startswith(_prefix(path)) and name.endswith(path.suffix)
            if ours and len(name) == made and left.is_file():
                _remove_unless_locked(left)


def _remove_unless_locked(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            if lock(handle):
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file or directory for this process until it is closed.

    Returns:
        Whether it was free; None where the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def only_one(directory: Path, work: str) -> Iterator[None]:
    """Hold a directory for one process as long as the block runs; its end, however, frees it.

    Args:
        directory: Made if it is not there.
        work: What is done in it, for the sentence that others are told.

    Raises:
        RedrafterError: If another process holds it; says which.
    """
    made = missing_directories(directory)
    try:
        with made_directory(directory):
            file, free = _open_lock(directory / LOCK_FILE)
    except OSError as error:
        raise _unwritable(directory, error) from error
    with file:
        if not free:
            raise RedrafterError(
                f"Another {work} is under way in {directory} ({_holder(file)}): wait for it, end "
                "it, or choose another directory."
            )
        try:
            _sign(file, directory)
            yield
        finally:
            (directory / LOCK_FILE).unlink(missing_ok=True)
            remove_empty(made)


def _unwritable(directory: Path, error: OSError) -> RedrafterError:
    return RedrafterError(
        f"{directory} cannot be written ({error.strerror or error}): mend that, or choose another "
        "directory."
    )


def _open_lock(path: Path) -> tuple[IO[str], bool]:
    """The lock's file, and whether it is this process's now."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if lock(file.fileno()) is False:
            return file, False
        # Its holder may have removed it between the two; then it holds nobody off.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file, True
        file.close()


def _sign(file: IO[str], directory: Path) -> None:
    """Write into the lock's file who holds it."""
    try:
        os.truncate(file.fileno(), 0)
        # Not through the file's buffer, which would fail once more when it is closed.
        os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
    except OSError as error:
        raise _unwritable(directory, error) from error


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200).strip() or "which has not said its name"
