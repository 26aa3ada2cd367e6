"""Features on disk: safetensors shards that are written once and read row by row."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.disk import changes, writing
from ..system.files import LOCK_FILE, atomic_path, only_one, size_words, write_json
from ..system.packing import packed
from .config import DistillationConfig
from .data import TokenRow
from .features import Features, ShardedArray
from .hashes import rows_hash
from .teacher import FeatureExtractor, Teacher, kept_positions

SHARD_BYTES = 2**29
INDEX = "features.json"
SEAL = "made_of"  # a shard's entry that says what it is of
_KINDS = {"F16": np.float16, "F32": np.float32, "U16": np.uint16, "I32": np.int32}


@dataclass(frozen=True)
class StorePlan:
    """What a cache of features is going to take.

    Attributes:
        directory: Where it is.
        total_bytes: Size when complete.
        missing_bytes: Of which still to be written.
        free_bytes: Room on that disk.
    """

    directory: Path
    total_bytes: int
    missing_bytes: int
    free_bytes: int


def stored_features(
    directory: Path,
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
    *,
    target_sha256: str,
    overwrite: bool = False,
    announce: Callable[[StorePlan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Features:
    """Features of the rows from ``directory``, where missing shards are computed first.

    Args:
        directory: Of this cache alone; complete shards in it are used again.
        target: Frozen; only called.
        drafter: Gives the draft vocabulary.
        rows: See ``data.tokenize``.
        config: ``top_k``, ``temperature`` and ``batch_tokens`` are read.
        target_sha256: See ``target_hash``.
        overwrite: Replace features of something else instead of refusing.
        announce: Called with the sizes before anything is written.
        progress: Called with (rows done, rows in all).
        shard_bytes: Largest shard, as long as a row fits.

    Raises:
        RedrafterError: If the directory holds features of something else, another run is writing
            into it, or the disk has no room.
    """
    sight = FeatureExtractor(target, drafter, config, np.float16)
    each = sight.position_bytes
    blocks = packed(rows, lambda row: kept_positions([row]) * each, shard_bytes)
    fingerprint = _fingerprint(sight, rows, target_sha256, [len(block) for block in blocks])
    # Until all are open: another run would write its own shards among these.
    with only_one(directory, "training"):
        _claim(directory, fingerprint, overwrite)
        shards = [
            _sealed(directory / f"features-{i:05d}.safetensors", block, fingerprint, i)
            for i, block in enumerate(blocks)
        ]
        ready = [shard.is_whole() for shard in shards]
        _make_room(shards, ready, sight.position_bytes, directory, announce)
        finished = 0
        for shard, done in zip(shards, ready, strict=True):
            if not done:
                before = finished
                told = None if progress is None else lambda n, b=before: progress(b + n, len(rows))
                shard.write(sight.arrays(shard.rows, told))
            finished += len(shard.rows)
            if progress is not None:
                progress(finished, len(rows))
        return sight.features(rows, _open(shards))


def _make_room(
    shards: Sequence[_Shard],
    ready: Sequence[bool],
    each: int,
    directory: Path,
    announce: Callable[[StorePlan], None] | None,
) -> None:
    """Tell what is going to be written, and see that there is room for it."""
    sizes = [kept_positions(shard.rows) * each for shard in shards]
    for shard, done in zip(shards, ready, strict=True):
        if not done:
            with writing(shard.path):
                shard.path.unlink(missing_ok=True)
    missing = sum(size for size, done in zip(sizes, ready, strict=True) if not done)
    plan = StorePlan(directory, sum(sizes), missing, shutil.disk_usage(directory).free)
    if announce is not None:
        announce(plan)
    if missing > plan.free_bytes:
        raise RedrafterError(
            f"The features need {size_words(missing)} in {directory}, but only "
            f"{size_words(plan.free_bytes)} are free there: choose another directory, or "
            "--features stream."
        )


def _fingerprint(
    sight: FeatureExtractor, rows: Sequence[TokenRow], target_sha256: str, blocks: list[int]
) -> dict[str, Any]:
    return {
        "target": target_sha256,
        "data": rows_hash(rows),
        "draft vocabulary": hashlib.sha256(sight.vocabulary.tobytes()).hexdigest(),
        "top_k": sight.top_k,
        "temperature": sight.config.temperature,
        "batch_tokens": sight.config.batch_tokens,
        "rows of each shard": blocks,
    }


def check_cache(directory: Path, taken: Path | None = None) -> None:
    """See that a directory can hold features, before hours are spent on what comes before them.

    Args:
        directory: That is to hold them.
        taken: One that is about to hold other files.

    Raises:
        RedrafterError: If it is a file, cannot be looked into, or belongs to something else.
    """
    if not directory.exists() or (directory / INDEX).is_file():
        return
    try:
        occupied = (taken is not None and directory.samefile(taken)) or any(
            path.name != LOCK_FILE for path in directory.iterdir()
        )
    except OSError as error:
        raise RedrafterError(
            f"{directory} cannot keep features ({error.strerror or error}): choose a directory."
        ) from error
    if occupied:
        raise RedrafterError(
            f"{directory} holds other files and no features: choose a directory of its own."
        )


def _claim(directory: Path, fingerprint: dict[str, Any], overwrite: bool) -> None:
    """Make the directory this cache's, or see that it is."""
    index = directory / INDEX
    if index.exists():
        changed = changes(index, fingerprint)
        if not changed:
            return
        if not overwrite:
            raise RedrafterError(
                f"The features in {directory} were made with another "
                f"{', another '.join(changed)}: choose another directory, or remove this one."
            )
        for path in [*directory.glob("features-*.safetensors"), index]:
            path.unlink()
    else:
        check_cache(directory)
    with writing(index):
        write_json(index, fingerprint)


@dataclass(frozen=True)
class _Shard:
    """Some rows' features in a file of their own.

    Attributes:
        path: The file.
        rows: What it is of.
        seal: In the file too; says what it is of and how it was made.
    """

    path: Path
    rows: list[TokenRow]
    seal: str

    def is_whole(self) -> bool:
        """Whether it is there, complete and this run's."""
        try:
            self.read()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ):
            return False
        return True

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays of ``FeatureExtractor.arrays``."""
        with (
            writing(self.path, "the features before it are kept"),
            atomic_path(self.path) as temporary,
        ):
            save_file(arrays, str(temporary), {SEAL: self.seal})

    def read(self) -> dict[str, np.ndarray]:
        """The arrays, which the disk is read for only where they are looked at.

        Raises:
            OSError: If there is no such file.
            ValueError: Or another error, if it is damaged or not this run's.
        """
        path = self.path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError(f"{path} is damaged")
            header = json.loads(file.read(size))
        if header["__metadata__"][SEAL] != self.seal:
            raise ValueError(f"{path} is another run's")
        whole = np.memmap(path, np.uint8, "r")  # one open file a shard, or there might be too many
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                if end > len(whole):
                    raise ValueError(f"{path} is cut off")
                found[name] = whole[start:end].view(_KINDS[entry["dtype"]]).reshape(entry["shape"])
        return found


def _sealed(path: Path, rows: list[TokenRow], fingerprint: dict[str, Any], number: int) -> _Shard:
    what = json.dumps([fingerprint, number], sort_keys=True)
    return _Shard(path, rows, hashlib.sha256(what.encode()).hexdigest())


def _open(shards: Sequence[_Shard]) -> dict[str, ShardedArray]:
    found = [shard.read() for shard in shards]
    return {name: ShardedArray([arrays[name] for arrays in found]) for name in found[0]}
