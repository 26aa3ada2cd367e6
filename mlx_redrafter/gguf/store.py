"""GGUF files as model directories in the user's cache, each made once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import RedrafterError
from ..system.device import on_gpu
from ..system.files import cache_directory, local_path, write_json
from ..system.limits import usable_memory
from ..system.workspace import InUse, publish, require_space, workspace
from .blocks import KEPT_BITS
from .directory import Progress, write_model
from .file import GGUFModel, GGUFTensor, read_gguf, require_regular, shard_set, shards

FORMAT = 3  # raised when the same file would be written differently
HEADROOM = 1 << 24  # bytes for tokenizer and configuration
SAMPLE_OF_BEGINNING, SAMPLE, SAMPLES = 1 << 16, 1 << 10, 256  # bytes, bytes, pieces
SECONDS_BETWEEN_LOOKS = 0.2
SIZES = "sizes.json"  # of the directory's files in bytes, by name
REMEDY = "convert the file with convert.py, whose --mlx-path can be anywhere"


def converted(path: Path, progress: Progress, store: Path | None = None) -> Path:
    """The model directory of a GGUF file, written where there is none of just this file.

    Where mlx computes on a CPU, whose kernels are fast in float32 alone, all is dequantised,
    unless that would take half of the machine's memory.

    Args:
        path: A GGUF file, or any shard of several.
        progress: Told the stage, the bytes done and those in all.
        store: Where directories are kept; by default in the user's cache.

    Raises:
        RedrafterError: If the file cannot be converted; nothing is left then.
    """
    path = local_path(path)
    require_regular(path)
    files = shards(path)
    store = store or _default_store()
    place, version = _place(files), _version(files)
    suffixes = ("",) if on_gpu() else ("-float32", "")
    while True:
        for suffix in suffixes:
            if (done := _finished(store / f"{place}-{version}{suffix}")) is not None:
                return done
        try:
            return _convert(path, store, f"{place}-{version}", progress)
        except InUse:  # another process converts just this file
            progress("Waiting for another process that converts the file", 0, 1)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _finished(directory: Path) -> Path | None:
    """A model directory in it, made of the file under whatever name, whose files are whole."""
    found = sorted(directory.glob(f"[!.]*/{SIZES}"))
    return next((sizes.parent for sizes in found if _is_whole(sizes)), None)


def _is_whole(sizes: Path) -> bool:
    try:
        told = json.loads(sizes.read_text("utf-8"))
        return all((sizes.parent / name).stat().st_size == size for name, size in told.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(path: Path, store: Path, name: str, progress: Progress) -> Path:
    """Write the directory, and remove what was made of earlier contents of the same place."""
    model = read_gguf(path)
    plain = _wants_float32(model)
    out = store / f"{name}{'-float32' if plain else ''}" / model.path.stem
    with workspace(out, REMEDY) as work:
        require_space(work, _size(model, plain) + HEADROOM, REMEDY)
        finished = work / out.name
        finished.mkdir()
        write_model(model, finished, progress, plain, mx.float32 if plain else None)
        write_json(finished / SIZES, {p.name: p.stat().st_size for p in finished.iterdir()})
        publish(finished, out)
    _forget_others(store, *name.split("-"))
    return out


def _default_store() -> Path:
    directory = cache_directory()
    if directory is None:
        raise RedrafterError(f"There is no home directory to keep a converted model in: {REMEDY}.")
    return directory / "gguf"


def _place(files: list[Path]) -> str:
    """Where the file lies, whatever leads to it, in a few letters."""
    return hashlib.sha256(os.fsencode(files[0].resolve())).hexdigest()[:8]


def _version(files: list[Path]) -> str:
    """What tells this content of the place from an earlier one.

    Sizes and times of change, and samples: copies and archives may keep the times.
    """
    told = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns, _samples(f)) for f in files]
    return hashlib.sha256(repr((FORMAT, told)).encode()).hexdigest()[:12]


def _samples(file: Path) -> str:
    """A digest of a file's beginning and of pieces all over it."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLE_OF_BEGINNING))
            size = os.fstat(stream.fileno()).st_size
            for index in range(SAMPLES):
                stream.seek(size * index // SAMPLES)
                digest.update(stream.read(SAMPLE))
            stream.seek(max(0, size - SAMPLE))
            digest.update(stream.read(SAMPLE))
    except OSError as error:
        raise RedrafterError(f"'{file}' cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def _wants_float32(model: GGUFModel) -> bool:
    if on_gpu():
        return False
    return _size(model, plain=True) <= (usable_memory() or 0) / 2


def _size(model: GGUFModel, plain: bool) -> int:
    """Bytes that the directory takes: of float32, or at most those of float16."""
    weights = sum(int(np.prod(t.shape)) for t in model.tensors.values())
    if plain:
        return 4 * weights
    return sum(_stored_bytes(t) for t in model.tensors.values())


def _stored_bytes(tensor: GGUFTensor) -> int:
    if tensor.type in KEPT_BITS:
        return tensor.nbytes * 3 // 2  # Q4_0's biases are new, and scales may be float32
    return int(np.prod(tensor.shape)) * (4 if tensor.type == "F32" else 2)


def _forget_others(store: Path, place: str, version: str) -> None:
    """Remove what was made of earlier contents of the same place."""
    for directory in store.glob(f"{place}-*"):
        if not directory.name.startswith(f"{place}-{version}"):
            shutil.rmtree(directory, ignore_errors=True)


def gguf_files(directory: Path) -> list[Path]:
    """GGUF models of a directory, of shards the first there; projectors of images are none."""
    found = [
        path
        for path in sorted(directory.glob("*.gguf"))
        if path.is_file() and "mmproj" not in path.name
    ]
    sets: dict[str, Path] = {}
    for path in found:
        sets.setdefault(shard_set(path), path)
    return list(sets.values())


def only_file(files: list[Path], place: str, wanted: str | None = None) -> Path:
    """The GGUF file that is meant.

    Args:
        files: Candidates.
        place: Directory or repository, for the message.
        wanted: A file's name, None where there should be only one.

    Raises:
        RedrafterError: If it is not there, or there are several and none is named.
    """
    if wanted is not None:
        named = [path for path in files if wanted in (path.name, path.stem, str(path))]
        if len(named) == 1:
            return named[0]
    if len(files) == 1 and wanted is None:
        return files[0]
    names = ", ".join(path.name for path in files) or "none"
    what = "no GGUF file of that name" if wanted is not None else "several GGUF files"
    raise RedrafterError(
        f"'{place}' holds {what} (there: {names}): name one, as --gguf-file NAME to convert.py or "
        f"as '{place}/NAME' elsewhere."
    )
