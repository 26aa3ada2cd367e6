"""Bundles with damaged files: one byte, one value or one piece changed at a time, by seed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ABSURD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31 - 1, 2**31, 10**9, 10**18, 1e308, -1.5, "", "32", [], {}, [[]],
    "\x1b]0;title\x07", "\u202e", "\ud800", [1, 2], {"type": "x"},
)  # fmt: skip


def files_of(bundle: Path) -> list[str]:
    """Every file, relative to the bundle."""
    return sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())


def damaged(bundle: Path, work: Path, name: str, seed: int, count: int) -> Iterator[str]:
    """Yield ``count`` descriptions; while each is current, ``work`` is the bundle with that damage.

    Args:
        bundle: Whole; it is only read.
        work: Where the damaged copy is.
        name: The file to damage.
        seed: Of the choices.
        count: How many damages.
    """
    shutil.copytree(bundle, work, dirs_exist_ok=True)
    whole = (bundle / name).read_bytes()
    chance = random.Random(f"{name} {seed}")
    for number in range(count):
        described, data = _damage(whole, name, number, chance)
        (work / name).write_bytes(data)
        yield f"{name}, {number}: {described}"
    (work / name).write_bytes(whole)


def _damage(whole: bytes, name: str, number: int, chance: random.Random) -> tuple[str, bytes]:
    if name.endswith(".json") and number % 2:
        return _other_value(whole, chance)
    if number % 10 == 0:
        at = chance.randrange(len(whole))
        return f"cut at {at}", whole[:at]
    # Most of a weights file is numbers; a part of it says what they are.
    told = _described(whole, name)
    at = chance.choice(told) if told and number % 4 else chance.randrange(len(whole))
    byte = chance.randrange(256)
    return f"byte {at} is {byte}", whole[:at] + bytes([byte]) + whole[at + 1 :]


def _described(whole: bytes, name: str) -> Sequence[int]:
    """Where a weights file says what it holds, () for other files."""
    if name.endswith(".safetensors"):
        return range(min(len(whole), 8 + int.from_bytes(whole[:8], "little")))
    if name.endswith(".gguf"):
        return range(min(len(whole), whole.rfind(b".weight") + 64))
    if name.endswith((".bin", ".pt", ".pth")):  # an archive: a pickle first, its table last
        return [*range(min(len(whole), 4096)), *range(max(0, len(whole) - 4096), len(whole))]
    return ()


def _other_value(whole: bytes, chance: random.Random) -> tuple[str, bytes]:
    value = json.loads(whole)
    places = [
        (holder, key)
        for holder in _holders(value, 3)
        for key in (holder if isinstance(holder, dict) else range(min(len(holder), 20)))
    ]
    holder, key = chance.choice(places)
    absurd = chance.choice(ABSURD)
    holder[key] = absurd
    return f"{key} is {absurd!r}", json.dumps(value).encode("ascii")


def _holders(value: Any, depth: int) -> Iterator[Any]:
    if depth and isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value[:20]:
            yield from _holders(inner, depth - 1)
