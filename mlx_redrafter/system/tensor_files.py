"""What safetensors files say they hold, read before anything trusts it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

# The safetensors format: eight bytes of length, a JSON header, the data.
_LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensors:
    """What safetensors files say they hold.

    Attributes:
        count: Tensors.
        widest: Largest dimension of any.
        sizes: Bytes of each, by name.
    """

    count: int
    widest: int
    sizes: Mapping[str, int]


def tensors_of(paths: Sequence[Path], remedy: str = "fetch or convert it again") -> Tensors:
    """Read the headers of safetensors files.

    Args:
        paths: The files.
        remedy: What to do about a damaged one.

    Raises:
        RedrafterError: If a header is damaged, or names bytes that the file does not have.
    """
    widest, sizes = 0, {}
    for path in paths:
        for name, shape, size in _header(path, remedy):
            widest = max([widest, *shape])
            sizes[name] = size
    return Tensors(len(sizes), widest, sizes)


def _header(path: Path, remedy: str) -> Iterator[tuple[str, list[int], int]]:
    damaged = RedrafterError(
        f"{path} is damaged or cut short: its header does not describe its contents; {remedy}."
    )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            there = path.stat().st_size - _LENGTH_BYTES
            if not 2 <= length <= min(there, LARGEST_HEADER):
                raise damaged
            entries = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise RedrafterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(entries, dict):
        raise damaged
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        shape, begin, end = _entry(entry)
        if shape is None or not 0 <= begin <= end <= there - length:
            raise damaged
        yield name, shape, end - begin


def _entry(entry: Any) -> tuple[list[int] | None, int, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return None, 0, 0
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        return None, 0, 0
    # The narrowest kind takes half a byte a number.
    if math.prod(shape) > 2 * (offsets[1] - offsets[0]):
        return None, 0, 0
    return shape, offsets[0], offsets[1]


def _counts(value: Any) -> list[int] | None:
    fits = isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
    return list(value) if fits else None
