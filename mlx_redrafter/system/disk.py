"""Errors of writing, told in one sentence, and files that say what their neighbours are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import RedrafterError


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
        room = "" if isinstance(error, NotADirectoryError) else "make room on that disk, or "
        raise DiskError(
            f"{path} could not be written ({reason}): {room}choose another directory{then}."
        ) from error


def changes(path: Path, identity: dict[str, Any]) -> list[str]:
    """Names of the entries in which a JSON file differs from ``identity``.

    The file's own name where it is not there or cannot be read.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        return [name for name, value in identity.items() if found.get(name) != value]
    except (OSError, ValueError, AttributeError):
        return [path.name]
