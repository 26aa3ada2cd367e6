"""Caches in files: one safetensors file with the arrays, and a description that says what they are.

The description, JSON in the file's metadata, is nested data in which tensors stand for arrays. It
and each tensor have a checksum: a number that was changed would show in no other way than as
another text.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx

from ..errors import RedrafterError
from ..system.disk import writing
from ..system.files import atomic_path, local_path, require_reach
from ..system.tensor_files import tensors_of

FORMAT = "mlx_redrafter prompt cache"
# To be raised whenever what layers keep, or how it is to be read, changes.
VERSION = "1"
_TENSOR = "$tensor"  # begins no name of a layer's
_AGAIN = "let a new cache read the text again, and save that"
_DIFFERENCES = {
    "mlx_lm": "with another release of mlx-lm, which may compute otherwise",
    "model": "with another model, or another configuration or quantisation of this one",
    "weights": "with other weights of this model",
}


def write_cache(path: str | Path, identity: Mapping[str, str], content: Any) -> None:
    """Write a cache's content, atomically.

    Args:
        path: The file, with any suffix; missing directories are made.
        identity: Of the model, see ``model_identity``.
        content: Nested dicts and lists of arrays, numbers, text and None.

    Raises:
        RedrafterError: If something else is in it; of the kind DiskError if it cannot be written.
    """
    path = local_path(path)
    tensors: dict[str, mx.array] = {}
    described = {"identity": dict(identity), "content": _described(content, tensors)}
    text = json.dumps(described, separators=(",", ":"))
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "description": text,
        "checksum": str(zlib.crc32(text.encode())),
    }
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        # By its name, mlx would append a suffix where there is another.
        mx.save_safetensors(file, tensors, metadata)


def read_cache(path: str | Path, identity: Mapping[str, str]) -> Any:
    """What :func:`write_cache` has written; arrays are evaluated, and need the file no longer.

    Args:
        path: The file.
        identity: Of the model that is to go on from it.

    Raises:
        RedrafterError: If there is no such file, it is damaged, of another kind or version, or of
            another model or other weights.
    """
    path = local_path(path)
    require_reach(path)
    if not path.is_file():
        raise RedrafterError(f"There is no file {path} to load a cache from: check the path.")
    tensors_of([path], _AGAIN)
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        tensors, metadata = loaded
        _check_kind(path, metadata)
        text = metadata.get("description", "")
        if metadata.get("checksum") != str(zlib.crc32(text.encode())):
            refuse_damaged(path)
        described = json.loads(text)
        _check_identity(path, described["identity"], identity)
        return _restored(described["content"], tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        refuse_damaged(path, error)


def refuse_damaged(path: str | Path, cause: Exception | None = None) -> NoReturn:
    """Say that a file does not hold what was written.

    Raises:
        RedrafterError: Always; the cause itself if it is one.
    """
    if isinstance(cause, RedrafterError):
        raise cause
    raise RedrafterError(
        f"{local_path(path)} is damaged: it does not hold what was saved; {_AGAIN}."
    ) from cause


def refuse_unsavable(what: str) -> NoReturn:
    """Say that a cache cannot be saved.

    Args:
        what: What it holds.

    Raises:
        RedrafterError: Always.
    """
    raise RedrafterError(
        f"This cache cannot be saved, since it holds {what}: keep its tokens, which a new cache "
        "reads again."
    )


def _check_kind(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise RedrafterError(
            f"{path} is no cache that save wrote (mlx-lm's cannot be taken over): let a new cache "
            "read the text, and save that."
        )
    if metadata.get("version") != VERSION:
        raise RedrafterError(
            f"{path} was saved by a release of mlx_redrafter that keeps caches otherwise: {_AGAIN}."
        )


def _check_identity(path: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    parts = [identity.get("part") for identity in (saved, now)]  # whole models have none
    if parts[0] != parts[1]:
        was, here = (part or "a process of its own" for part in parts)
        raise RedrafterError(
            f"{path} was saved by {was}, and this is {here}: give each rank a file of its own, and "
            f"keep the number of ranks; or {_AGAIN}."
        )
    for name, words in _DIFFERENCES.items():
        if saved[name] != now[name]:
            raise RedrafterError(f"{path} was saved {words}: {_AGAIN}.")


def _described(value: Any, tensors: dict[str, mx.array]) -> Any:
    """Data with tensors' names and checksums in place of arrays."""
    if isinstance(value, mx.array):
        name = str(len(tensors))
        tensors[name] = mx.contiguous(value)
        return {_TENSOR: [name, _checksum(tensors[name])]}
    if type(value) is dict:
        return {key: _described(entry, tensors) for key, entry in value.items()}
    if type(value) is list:
        return [_described(entry, tensors) for entry in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    refuse_unsavable(f"a {type(value).__name__} that no file can hold")


def _restored(value: Any, tensors: Mapping[str, mx.array]) -> Any:
    """The inverse of :func:`_described`.

    Raises:
        ValueError: If an array is not what it was.
    """
    if isinstance(value, list):
        return [_restored(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR not in value:
        return {key: _restored(entry, tensors) for key, entry in value.items()}
    name, checksum = value[_TENSOR]
    if _checksum(tensors[name]) != checksum:
        raise ValueError(f"tensor {name} has changed")
    return tensors[name]


def _checksum(array: mx.array) -> int:
    """Of numbers, shape and dtype."""
    kind = zlib.crc32(f"{array.dtype} {array.shape}".encode())
    numbers: Any = array.reshape(-1).view(mx.uint8)
    return zlib.crc32(memoryview(numbers), kind)
