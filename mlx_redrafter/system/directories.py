"""Directories that are made for what is written into them, and go again where that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def made_directory(directory: Path) -> Iterator[None]:
    """Make a directory, and those above it, for the block.

    Where the block fails those that were made and hold nothing are removed.

    Raises:
        NotADirectoryError: If a part of the path is something else; its words say which.
        OSError: If the directory cannot be made.
    """
    require_directories(directory)
    made = missing_directories(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        remove_empty(made)
        raise


def missing_directories(directory: Path) -> list[Path]:
    """Those of a directory and its parents that are not there, from the bottom up."""
    return [path for path in (directory, *directory.parents) if not os.path.lexists(path)]


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove directories in this order; those that hold something stay."""
    for path in directories:
        with suppress(OSError):
            path.rmdir()


def require_directories(directory: Path) -> None:
    """See that nothing else stands where a directory, or one above it, is or is to be made.

    Raises:
        NotADirectoryError: In place of the system's "File exists"; its words name what stands.
    """
    for path in (directory, *directory.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{path} is {_other(path)}", str(directory))
            return


def _other(path: Path) -> str:
    if path.exists():
        return "a file, not a directory"
    return "a link that leads nowhere"
