"""Errors of writing, told in one sentence, and files that say what their neighbours are."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import RedrafterError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskError(RedrafterError):
    """Something could not be written; what was written before is whole."""


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn an error of writing into one sentence.

    Args:
        path: What is written.
        kept: What there is to continue from, for the sentence.

    Raises:
        DiskError: If the block fails to write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        then = f"; {kept}" if kept else ""
        raise DiskError(
            f"{path} could not be written ({reason}): {_remedy(error)}{then}."
        ) from error


def _remedy(error: OSError | RuntimeError | SafetensorError) -> str:
    """What to do about an error of writing."""
    number = getattr(error, "errno", None)
    if number == errno.EISDIR:
        return "name a file in it, or choose another directory"
    # Libraries that give no number leave out why; mostly the disk is full.
    if number is None or number in _FULL:
        return "make room on that disk, or choose another directory"
    return "choose another directory"


def changes(path: Path, identity: dict[str, Any]) -> list[str]:
    """Names of the entries in which a JSON file differs from ``identity``.

    The file's own name where it is not there or cannot be read.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        return [name for name, value in identity.items() if found.get(name) != value]
    except (OSError, ValueError, AttributeError):
        return [path.name]
