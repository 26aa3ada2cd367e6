"""A GGUF file's metadata and tensors, read with the format's own package."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import RedrafterError
from .header import check_header

FileState = tuple[int, int, int, int]  # device, number, bytes, time of change in ns

# Stored as they are: numbers of numpy's.
PLAIN = ("F32", "F16", "F64")
WHOLE_NUMBERS = ("I8", "I16", "I32", "I64")
LARGEST_INTEGER = (1 << 31) - 1  # that a model's configuration has use for
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GGUFTensor:
    """One stored tensor.

    Attributes:
        name: As in the file ("blk.0.attn_q.weight").
        type: GGUF's name of the type ("Q4_0", "F16").
        shape: Of the weights, in numpy's order.
        file: The file.
        state: What :func:`file_state` said of it when its header was read.
        offset: Of the stored bytes in it.
        form: Their type as numpy has it.
        extents: Their shape: (..., bytes of a row) for block types, else ``shape``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: Path
    state: FileState
    offset: int
    form: np.dtype[Any]
    extents: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return math.prod(self.extents) * self.form.itemsize

    def read(self) -> np.ndarray[Any, Any]:
        """The stored bytes, of the type ``form`` in the shape ``extents``.

        They are not mapped into memory, since a process dies of a mapped file that gets shorter.

        Raises:
            RedrafterError: If the file has changed or cannot be read.
        """
        try:
            with self.file.open("rb") as stream:
                same = file_state(stream) == self.state
                stream.seek(self.offset)
                count = math.prod(self.extents) if same else 0
                data = np.fromfile(stream, self.form, count)
        except OSError as error:
            raise RedrafterError(f"'{self.file}' cannot be read: {error.strerror}.") from None
        if len(data) * data.itemsize < self.nbytes:
            raise RedrafterError(
                f"'{self.file}' was changed while it was read: try again when it is complete."
            )
        return data.reshape(self.extents)

    def row(self, index: int) -> GGUFTensor:
        """One row, as a tensor with a dimension less."""
        start = self.offset + index * (self.nbytes // self.extents[0])
        return replace(self, shape=self.shape[1:], offset=start, extents=self.extents[1:])


def file_state(stream: BinaryIO) -> FileState:
    """What tells an open file from another one, and from itself after a change."""
    told = os.fstat(stream.fileno())
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


@dataclass(frozen=True)
class GGUFModel:
    """A model's metadata and tensors, of one file or of all its shards.

    Attributes:
        path: The file, or the first shard.
        metadata: Values by key; floats rounded to what their 32 bits mean in decimal.
        tensors: By name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor] = field(repr=False)

    @property
    def architecture(self) -> str:
        """The family's name in GGUF ("llama", "gemma2")."""
        return self.text("general.architecture")

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the metadata."""
        return str(self._value(key, default, str))

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number under the architecture's prefix, at least 0."""
        full = self._full(key)
        value = self.metadata.get(full, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one for each layer, all the same
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 0 <= value <= LARGEST_INTEGER
        ):
            raise self.refusal(full, value, "a whole number")
        return value

    def count(self, key: str, most: int, expected: str, default: int | None = None) -> int:
        """A whole number from 1 to ``most`` under the architecture's prefix."""
        value = self.integer(key, default)
        if not 1 <= value <= most:
            raise self.refusal(self._full(key), value, expected)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number under the architecture's prefix."""
        full = self._full(key)
        value = self.metadata.get(full, default)
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise self.refusal(full, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0 under the architecture's prefix."""
        value = self.number(key, default)
        if value <= 0:
            raise self.refusal(self._full(key), value, "a number above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of the metadata, by its whole key."""
        return bool(self._value(key, default, bool))

    def has(self, key: str) -> bool:
        """Whether the architecture's prefix has this key."""
        return self._full(key) in self.metadata

    def refusal(self, key: str, value: Any, expected: str) -> RedrafterError:
        """The sentence for metadata that makes no sense."""
        shown = "missing" if value is None else repr(value)[:40]
        return RedrafterError(
            f"'{self.path}' cannot be converted: '{key}' is {shown} where {expected} is expected; "
            "download it again."
        )

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _value(self, key: str, default: Any, kind: type) -> Any:
        value = self.metadata.get(key, default)
        if not isinstance(value, kind):
            raise self.refusal(key, value, {str: "a string", bool: "true or false"}[kind])
        return value


def read_gguf(path: Path) -> GGUFModel:
    """Open a GGUF file, and its other shards where it is one of several.

    Weights stay in the file until they are used.

    Raises:
        RedrafterError: If a file is missing, truncated, damaged or no GGUF, or if the ``gguf``
            package is not installed.
    """
    package()
    metadata: dict[str, Any] = {}
    tensors: dict[str, GGUFTensor] = {}
    files = shards(path)
    for file in files:
        values, found = _read_file(file)
        _check_count(file, values, len(files))
        for name in found.keys() & tensors.keys():
            raise RedrafterError(f"'{file}' repeats the tensor '{name}' of another shard.")
        metadata = {**values, **metadata}
        tensors |= found
    return GGUFModel(files[0], metadata, tensors)


def _check_count(path: Path, metadata: Mapping[str, Any], files: int) -> None:
    """Refuse a shard that its name does not show to be one of as many as it says itself."""
    count = metadata.get("split.count")
    if isinstance(count, int) and count > 1 and count != files:
        raise RedrafterError(
            f"'{path}' is one of {count} shards, as it says itself, which its name does not: give "
            f"all of them names like {path.stem[:40]}-00001-of-{count:05d}.gguf, or download them "
            "again."
        )


def package() -> Any:
    """The ``gguf`` package, imported where it is first needed.

    Raises:
        RedrafterError: If it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise RedrafterError(
            "Reading GGUF files needs the gguf package, which is not installed: run "
            "pip install 'mlx-redrafter[gguf]', or pip install gguf."
        ) from None
    return gguf


def shards(path: Path) -> list[Path]:
    """All files of a model of which ``path`` is one, in order.

    Raises:
        RedrafterError: If one of them is missing.
    """
    match = SHARD.match(path.name)
    if match is None:
        return [path]
    stem, number, many = match.groups()
    if not 1 <= int(number) <= int(many):
        return [path]
    files = [path.with_name(f"{stem}-{i:05d}-of-{many}.gguf") for i in range(1, int(many) + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RedrafterError(
            f"'{path}' is one of {int(many)} shards, of which '{missing[0]}' is not there: "
            "download all of them into one directory."
        )
    return files


def shard_set(path: Path) -> str:
    """A name that all shards of a model share, whether or not they are there."""
    match = SHARD.match(path.name)
    return path.name if match is None else f"{match[1]}-of-{match[3]}"


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    gguf = package()
    require_regular(path)
    check_header(path, {int(k): v for k, v in gguf.GGML_QUANT_SIZES.items()})
    try:
        with path.open("rb") as stream:
            state = file_state(stream)
        reader = gguf.GGUFReader(str(path))
        values = {key: _plain(entry.contents()) for key, entry in reader.fields.items()}
        tensors = {
            t.name: GGUFTensor(
                t.name,
                t.tensor_type.name,
                tuple(int(n) for n in reversed(t.shape)),
                path,
                state,
                int(t.data_offset),
                t.data.dtype,
                t.data.shape,
            )
            for t in reader.tensors
        }
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RedrafterError(
            f"'{path}' is truncated or damaged ({reason}): download it again."
        ) from None
    for tensor in tensors.values():
        if not _is_readable(tensor.type):
            raise RedrafterError(
                f"'{path}' cannot be converted: its tensor '{tensor.name}' is stored as "
                f"{tensor.type}, which is no type of weights that is read here; take a file of "
                "another quantisation."
            )
    return values, tensors


@cache
def _is_readable(kind: str) -> bool:
    """Whether a type holds fractions, and the gguf package unpacks it."""
    if kind in PLAIN:
        return True
    if kind in WHOLE_NUMBERS:
        return False
    gguf = package()
    number = gguf.GGMLQuantizationType[kind]
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[number][1]), np.uint8), number)
    except NotImplementedError:
        return False
    return True


def require_regular(path: Path) -> None:
    """Refuse what is no file, such as a pipe, whose reading would never end.

    Raises:
        RedrafterError: If it is missing, unreadable or no regular file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise RedrafterError(f"'{path}' cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(mode):
        raise RedrafterError(f"'{path}' is not a regular file, so it is not read.")


def _plain(value: Any) -> Any:
    """Numbers and lists of Python's own; a 32-bit 0.00001 is no 9.999999747e-06."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and np.isfinite(value) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value
