"""Bounds of a GGUF file's header, checked before anything is allocated for what it promises."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ..errors import RedrafterError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Bytes of the fixed-size value types, by GGUF's numbers.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Types have been numbered up to 41 so far; some numbers were taken back, as 31 (Q4_0_4_4) was.
HIGHEST_TYPE = 255
MAX_DIMENSIONS = 4
MAX_NAME = 1 << 16
# What the gguf package makes of a header takes hundreds of times the room of its smallest values.
# The largest vocabularies, of 262,144 tokens, come with 1.3 million values and 20 MB.
MAX_VALUES = 1 << 22
MAX_HEADER = 1 << 28  # bytes
DEFAULT_ALIGNMENT = 32
SMALLEST_ENTRY = 8 + 1 + 4 + 1  # bytes of a key of one letter with a value of one byte
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


class _Damaged(Exception):
    """What is wrong, to be put into a sentence with the file's name."""


class _Unknown(Exception):
    """A tensor's type that may well be one, but not of this version of the gguf package."""

    def __init__(self, tensor: str, kind: int):
        super().__init__(tensor, kind)
        self.tensor, self.kind = tensor, kind


class _Reversed(Exception):
    """A file of a machine that has the bytes of numbers in another order."""


class _Walker:
    """Reads values forward and never further than the file."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size = stream, size
        self.values = 0

    @property
    def left(self) -> int:
        return self.size - self.stream.tell()

    def expect(self, values: int) -> None:
        """Refuse what would not be read in reasonable time and memory."""
        self.values += values
        if self.values > MAX_VALUES or self.stream.tell() > MAX_HEADER:
            raise _Damaged("no model has as much metadata as its header")

    def number(self, form: str) -> int:
        data = self.take(struct.calcsize(form))
        return int(struct.unpack("<" + form, data)[0])

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Damaged("it ends in the middle of its header")
        return self.stream.read(count)

    def skip(self, count: int) -> None:
        if count > self.left:
            raise _Damaged("it ends in the middle of its header")
        self.stream.seek(count, 1)

    def name(self) -> str:
        length = self.number("Q")
        if length > MAX_NAME:
            raise _Damaged(f"a name of {length} bytes is in its header")
        return self.take(length).decode("utf-8")

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            self.array()
        elif kind in SIZES:
            self.skip(SIZES[kind])
        else:
            raise _Damaged(f"a value of the unknown type {kind} is in its header")

    def array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if (8 if kind == STRING else SIZES.get(kind, 0)) * count > self.left:
            raise _Damaged(f"an array of {count} values does not fit into it")
        self.expect(count)
        if kind in SIZES:
            self.skip(SIZES[kind] * count)
        elif kind == STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise _Damaged(f"an array of the type {kind} is in its header")


def check_header(path: Path, type_sizes: dict[int, tuple[int, int]]) -> None:
    """Refuse a file whose header promises more than the file has.

    Args:
        path: A regular file.
        type_sizes: Weights in a block and bytes of a block, by the number of a tensor's type.

    Raises:
        RedrafterError: If it is no GGUF file, truncated, damaged, or of an unknown version, or
            holds tensors of an unknown type.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise RedrafterError(
                f"'{path}' is not a GGUF file: download it again (a file of a few bytes is often "
                "a Git LFS pointer)."
            )
        try:
            _check(_Walker(stream, size), type_sizes)
        except _Unknown as error:
            raise RedrafterError(
                f"'{path}' cannot be converted: its tensor '{error.tensor}' is stored as GGUF's "
                f"type {error.kind}, which the installed gguf package does not know; run pip "
                "install -U gguf if it is a new type, or take a file of another quantisation."
            ) from None
        except _Reversed:
            raise RedrafterError(
                f"'{path}' cannot be converted: it was written for big-endian machines, and only "
                "little-endian files are read here; take one of those."
            ) from None
        except (_Damaged, UnicodeDecodeError) as error:
            raise RedrafterError(
                f"'{path}' is truncated or damaged ({error}): download it again."
            ) from None


def _check(walk: _Walker, type_sizes: dict[int, tuple[int, int]]) -> None:
    version = walk.number("I")
    if version in (int.from_bytes(struct.pack(">I", one), "little") for one in VERSIONS):
        raise _Reversed
    if version not in VERSIONS:
        raise _Damaged(f"it says that it is of version {version}, where 2 and 3 are known")
    tensors, entries = walk.number("Q"), walk.number("Q")
    if entries * SMALLEST_ENTRY + tensors * SMALLEST_TENSOR > walk.left:
        raise _Damaged(f"{tensors} tensors and {entries} entries do not fit into it")
    walk.expect(tensors + entries)
    alignment = DEFAULT_ALIGNMENT
    for _ in range(entries):
        key, kind = walk.name(), walk.number("I")
        if key == "general.alignment" and kind == 4:
            alignment = walk.number("I")
            if alignment == 0 or alignment & (alignment - 1) or alignment > 1 << 20:
                raise _Damaged(f"its alignment is {alignment}")
        else:
            walk.value(kind)
        walk.expect(0)
    ends = [_tensor_end(walk, type_sizes) for _ in range(tensors)]
    start = walk.stream.tell()
    start += -start % alignment
    for name, end in ends:
        if start + end > walk.size:
            raise _Damaged(f"the tensor '{name}' does not fit into it")


def _tensor_end(walk: _Walker, type_sizes: dict[int, tuple[int, int]]) -> tuple[str, int]:
    """The name of the next tensor, and where its data ends in bytes after the first tensor's."""
    name, count = walk.name(), walk.number("I")
    if not 1 <= count <= MAX_DIMENSIONS:
        raise _Damaged(f"the tensor '{name}' has {count} dimensions")
    shape = [walk.number("Q") for _ in range(count)]
    kind, offset = walk.number("I"), walk.number("Q")
    if kind not in type_sizes:
        if kind > HIGHEST_TYPE:
            raise _Damaged(f"the tensor '{name}' is of the unknown type {kind}")
        raise _Unknown(name, kind)
    weights, size = type_sizes[kind]
    total = 1
    for extent in shape:
        total *= extent  # Python's integers do not wrap round
    if not total or shape[0] % weights:
        raise _Damaged(f"the tensor '{name}' has the impossible shape {shape}")
    return name, offset + total // weights * size
