"""A configuration's counts against the tensors that are really there, before anything is built."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

# The safetensors format: eight bytes of length, a JSON header, the data.
_LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
# A quantised row is packed up to 32 / 2 times, and a width may be split over heads.
PACKED = 32
# Sizes that stand for no tensor's dimension (chunks, windows, image sizes) may be as large as this.
ALWAYS = 1 << 20
# Each token of it is a product a draft.
LARGEST_LOOKBACK = 1024
_COUNTS = re.compile(
    r"^(num|n)_?(\w+_)?(layers?|blocks)$|^(\w+_)?layers$|^depth$|^independent_heads$"
)
_SIZES = re.compile(
    r"(hidden|embed|intermediate|vocab|exit|draft|head|expert|rank|state|inner|ffn|model|proj|conv).*"
    r"(size|dim|heads|experts|width|rank)|^(n|num)_.*(heads|experts)|d_model|n_embd|head_dim",
    re.IGNORECASE,
)
# Numbers of layers that are no limits, or lists of places.
_NO_COUNTS = re.compile(r"max_window|skip|cross|full|sparse|dense|moe|shared")


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


def tensors_of(paths: Sequence[Path]) -> Tensors:
    """Read the headers of safetensors files.

    Raises:
        RedrafterError: If a header is damaged, or names bytes that the file does not have.
    """
    widest, sizes = 0, {}
    for path in paths:
        for name, shape, size in _header(path):
            widest = max([widest, *shape])
            sizes[name] = size
    return Tensors(len(sizes), widest, sizes)


def _header(path: Path) -> Iterator[tuple[str, list[int], int]]:
    damaged = RedrafterError(
        f"{path} is damaged or cut short: its header does not describe its contents; fetch or "
        "convert it again."
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


def check_counts(config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Refuse more layers, blocks or heads than there are tensors: building them would be wasted.

    Args:
        config: A model's, drafter's or adapter's configuration.
        tensors: How many its weights hold; 0 where that is not known.
        path: The configuration's file, for the sentence.

    Raises:
        RedrafterError: Naming the key.
    """
    for key, value in _numbers(config):
        counts = _COUNTS.search(key) and not _NO_COUNTS.search(key)
        if counts and tensors and value > tensors:
            raise _impossible(path, key, value, f"{tensors:,} tensors")


def check_config(config: Mapping[str, Any], tensors: Tensors, path: Path) -> None:
    """Refuse counts of layers and sizes that no weights of this checkpoint can fill.

    Args:
        config: A model's, drafter's or adapter's configuration.
        tensors: What its weights hold.
        path: The configuration's file, for the sentence.

    Raises:
        RedrafterError: Naming the key.
    """
    check_counts(config, tensors.count, path)
    for key, value in _numbers(config):
        if key == "lookback" and value > LARGEST_LOOKBACK:
            raise RedrafterError(
                f"{path} asks for a lookback of {value:,} tokens: {LARGEST_LOOKBACK:,} are the "
                "most."
            )
        sizes = _SIZES.search(key)
        most = tensors.widest if key == "rank" else max(ALWAYS, PACKED * tensors.widest)
        if (sizes or key == "rank") and value > most:
            raise _impossible(path, key, value, f"no dimension above {tensors.widest:,}")


def _impossible(path: Path, key: str, value: int, there: str) -> RedrafterError:
    return RedrafterError(
        f"{path} asks for {value:,} as {key}, but the weights hold {there}: use the configuration "
        "that belongs to the weights."
    )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration with its key, one level of nesting down."""
    for key, value in config.items():
        nested = value.items() if isinstance(value, Mapping) else ((key, value),)
        for name, inner in nested:
            for one in inner if isinstance(inner, list) else [inner]:
                if isinstance(one, int) and not isinstance(one, bool):
                    yield str(name), one
