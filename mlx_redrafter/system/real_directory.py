"""Where a directory that is to be written really lies, and whether another can take its place."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RedrafterError

# File systems allow 255 bytes, and the workspace beside a directory has a longer name than it.
LONGEST_NAME = 230


def real_directory(path: Path, remedy: str) -> Path:
    """The place behind a link, or behind "..", so that what is renamed is the directory itself.

    Args:
        path: The directory, which need not be there yet.
        remedy: What a person can do where it cannot be written, for messages.

    Raises:
        RedrafterError: If a link leads nowhere, or the name is too long.
    """
    _check_name(path, remedy)
    if path.is_symlink() or ".." in path.parts:
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not real.exists():
            raise RedrafterError(f"'{path}' is a link that leads nowhere: remove it or {remedy}.")
        path = real
        _check_name(path, remedy)
    return path


def check_replaceable(path: Path) -> None:
    """Refuse a place whose directory cannot be renamed.

    Raises:
        RedrafterError: If a disk is mounted there.
    """
    if path.is_mount():
        raise RedrafterError(
            f"'{path}' is a mount point, which no directory can take the place of: name one below "
            "it, or unmount it."
        )


def _check_name(path: Path, remedy: str) -> None:
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise RedrafterError(
            f"The name '{path.name[:40]}...' is longer than {LONGEST_NAME} bytes: {remedy}."
        )
