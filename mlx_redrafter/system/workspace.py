"""Writing a directory so that it is either as it was or complete."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import RedrafterError
from .directories import made_directory
from .files import lock, make_locked, size_words

ANOTHER_PLACE = "choose another place"


class InUse(RedrafterError):
    """Another process is writing the same directory."""


@contextmanager
def workspace(out: Path, remedy: str = ANOTHER_PLACE) -> Iterator[Path]:
    """A hidden directory beside ``out`` that is gone afterwards, whatever happens.

    A process that is killed leaves its directory behind unlocked; the next conversion into the
    same place removes it, unless the file system has no locks to tell it by.

    Args:
        out: The directory to be written.
        remedy: What a person can do where it cannot be written to, for messages.

    Raises:
        InUse: If another conversion into ``out`` is running.
        RedrafterError: If the place cannot be written, or the disk is full.
    """
    with ExitStack() as made:
        with telling(out, remedy):
            made.enter_context(made_directory(out.parent))
            clear_stale(out, remedy)
            handle, directory = _make(out)
        try:
            yield directory
        except Exception as error:  # mlx and safetensors have their own kinds
            if not _is_full(error):
                raise
            raise RedrafterError(
                f"The disk that holds '{out.parent}' is full, and nothing was changed: "
                f"free space or {remedy}."
            ) from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(handle)


@contextmanager
def telling(out: Path, remedy: str) -> Iterator[None]:
    """Turn what the system says of the place of ``out`` into one sentence.

    Raises:
        RedrafterError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RedrafterError(
            f"'{out.parent}' cannot be written to ({error.strerror}): {remedy}."
        ) from None


def _make(out: Path) -> tuple[int, Path]:
    """A new directory beside ``out``, see :func:`make_locked`."""

    def make() -> tuple[int, Path]:
        directory = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
        return os.open(directory, os.O_RDONLY), directory

    return make_locked(make)


def _is_full(error: Exception) -> bool:
    """Whether a write found no room, in the words of Python, mlx or safetensors."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "Unable to write" in str(error) or "I/O error" in str(error)


def _prefix(out: Path) -> str:
    return f".{out.name}.convert-"


def _replaced(out: Path) -> Path:
    """Where an overwritten bundle waits for the instant between two renames."""
    return out.parent / f".{out.name}.replaced"


def clear_stale(out: Path, remedy: str = ANOTHER_PLACE) -> None:
    """Remove what killed conversions into ``out`` left, and undo a replacement cut in half.

    Raises:
        InUse: If another conversion into ``out`` is running.
    """
    if os.path.lexists(_replaced(out)):
        _settle(_replaced(out), out)
    for directory in out.parent.glob(glob.escape(_prefix(out)) + "*"):
        free = _is_free(directory)
        if free is False:
            raise InUse(f"Another conversion into '{out}' is running: wait for it or {remedy}.")
        if free:
            shutil.rmtree(directory, ignore_errors=True)


def _settle(waiting: Path, out: Path) -> None:
    """Remove what was replaced, or put it back where nothing has taken its place."""
    if waiting.is_symlink() and (os.path.lexists(out) or not waiting.exists()):
        waiting.unlink()  # what it leads to is not ours
    elif out.exists():
        shutil.rmtree(waiting, ignore_errors=True)
    elif not out.is_symlink():
        waiting.rename(out)


def _is_free(directory: Path) -> bool | None:
    """Whether no process holds it; None where it has gone, or the file system has no locks."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return lock(handle)
    finally:
        os.close(handle)


def publish(finished: Path, out: Path, remedy: str = ANOTHER_PLACE) -> None:
    """Move a finished directory to ``out``, replacing what is there, which must be no link.

    Raises:
        RedrafterError: If the system does not let it be moved; ``out`` is then as it was.
    """
    try:
        _exchange(finished, out)
    except OSError as error:
        raise RedrafterError(
            f"'{out}' cannot be replaced ({error.strerror or error}), and nothing was changed: "
            f"{remedy}."
        ) from None


def _exchange(finished: Path, out: Path) -> None:
    if not out.exists():
        finished.rename(out)
        return
    old = _replaced(out)
    out.rename(old)
    try:
        finished.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_space(directory: Path, needed: int, remedy: str = ANOTHER_PLACE) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        RedrafterError: If fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RedrafterError(
            f"The conversion needs {size_words(needed)} beside its output, but only "
            f"{size_words(free)} are free: make room or {remedy}."
        )
