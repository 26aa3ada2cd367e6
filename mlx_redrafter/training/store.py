"""Where the features of a run are kept: in memory, nowhere, or on disk.

On disk they are safetensors shards that are written once and read row by row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.disk import changes, writing
from ..system.files import atomic_path, size_words, write_json
from ..text.loading import resolve_path
from ..text.places import WEIGHTS_FILE
from .config import DistillationConfig
from .data import TokenRow
from .features import BatchSource, Features, ShardedArray
from .hardware import kept_bytes
from .options import TrainingOptions
from .teacher import (
    FeatureExtractor,
    StreamedBatches,
    Teacher,
    compute_features,
    kept_positions,
)
from .text_batches import TextBatches, kept_bytes_of_texts

TEXTS_KEPT = "texts in memory"
MEASURED_POSITIONS = 8192  # held-out positions of which features are kept
SHARD_BYTES = 2**29
INDEX = "features.json"
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


def target_hash(target: Teacher) -> str:
    """SHA-256 of the target's parameters: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tree_flatten(target.model.parameters())):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(np.array(mx.view(value.reshape(-1), mx.uint8), copy=False).data)
    return digest.hexdigest()


def weights_hash(path_or_repo: str) -> str:
    """SHA-256 of a drafter's weight file."""
    path = Path(resolve_path(path_or_repo)) / WEIGHTS_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_hash(rows: Sequence[TokenRow]) -> str:
    """SHA-256 of tokens and marks of all rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.tokens).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(row.tokens, dtype=np.int32).tobytes())
        digest.update(np.packbits(row.answer).tobytes())
    return digest.hexdigest()


def place_of_features(
    options: TrainingOptions,
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    note: Callable[[str], None],
) -> str:
    """Where features are kept: "memory", "disk" or nowhere ("stream").

    Those of whole texts are "texts in memory", or "texts" where nothing is kept.

    Args:
        options: Of the run.
        target: What the drafter learns from.
        drafter: The draft head.
        rows: What is learned from.
        note: Told what was decided where nothing was asked.
    """
    if drafter.remembers:
        if options.features != "auto":
            return TEXTS_KEPT if options.features == "memory" else "texts"
        needed = kept_bytes_of_texts(target, drafter, rows)
        return _chosen(needed, TEXTS_KEPT, "texts", note)
    if options.cache_features is not None:
        return "disk"
    if options.features != "auto":
        return options.features
    extractor = FeatureExtractor(
        target, drafter, DistillationConfig(top_k=options.top_k), np.float16
    )
    needed = kept_positions(rows) * extractor.position_bytes
    return _chosen(needed, "memory", "stream", note)


def _chosen(needed: int, kept: str, streamed: str, note: Callable[[str], None]) -> str:
    fits = needed <= kept_bytes()
    told = "are kept in memory" if fits else "are computed anew for each step"
    note(f"Features would take {size_words(needed)} and {told} (--features).")
    return kept if fits else streamed


def features_to_learn_from(
    where: str,
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
    *,
    directory: Path,
    target_sha256: str,
    overwrite: bool,
    note: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Features | BatchSource:
    """What a run takes its batches from.

    Args:
        where: See :func:`place_of_features`.
        target: Frozen; only called.
        drafter: The draft head.
        rows: What is learned from.
        config: The run.
        directory: For "disk".
        target_sha256: See :func:`stored_features`, as is ``overwrite``.
        overwrite: For "disk".
        note: Told what they take on disk.
        progress: Called with (rows done, rows in all) while they are computed.

    Raises:
        RedrafterError: If there is nothing to learn from, or they cannot be stored.
    """
    if drafter.remembers:
        return TextBatches(target, drafter, rows, config, keep=where == TEXTS_KEPT)
    if where == "stream":
        return StreamedBatches(target, drafter, rows, config)
    if where == "memory":
        return compute_features(target, drafter, rows, config, progress=progress)

    def announce(plan: StorePlan) -> None:
        note(
            f"Features take {size_words(plan.total_bytes)} in {plan.directory}, of which "
            f"{size_words(plan.missing_bytes)} are to be written ({size_words(plan.free_bytes)} "
            "are free)."
        )

    return stored_features(
        directory,
        target,
        drafter,
        rows,
        config,
        target_sha256=target_sha256,
        overwrite=overwrite,
        announce=announce,
        progress=progress,
    )


def held_out_features(
    where: str,
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
) -> Features | TextBatches:
    """What evaluations measure on: the first held-out rows, at most ``MEASURED_POSITIONS``."""
    totals = np.cumsum([kept_positions([row]) for row in rows])
    few = list(rows[: max(1, int((totals <= MEASURED_POSITIONS).sum()))])
    if drafter.remembers:
        return TextBatches(target, drafter, few, config)
    kept = np.float32 if where == "stream" else np.float16
    return compute_features(target, drafter, few, config, dtype=kept)


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
        RedrafterError: If the directory holds features of something else, or the disk has no room.
    """
    sight = FeatureExtractor(target, drafter, config, np.float16)
    blocks = _blocks(rows, sight.position_bytes, shard_bytes)
    fingerprint = _fingerprint(sight, rows, target_sha256, [len(block) for block in blocks])
    _claim(directory, fingerprint, overwrite)
    paths = [directory / f"features-{i:05d}.safetensors" for i in range(len(blocks))]
    sizes = [kept_positions(block) * sight.position_bytes for block in blocks]
    ready = [_is_whole(path) for path in paths]
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
    finished = 0
    for block, path, done in zip(blocks, paths, ready, strict=True):
        if not done:
            before = finished
            told = None if progress is None else lambda n, b=before: progress(b + n, len(rows))
            _write(path, sight.arrays(block, told))
        finished += len(block)
        if progress is not None:
            progress(finished, len(rows))
    return sight.features(rows, _open(paths))


def _blocks(rows: Sequence[TokenRow], each: int, limit: int) -> list[list[TokenRow]]:
    """Rows in order, in blocks that take at most ``limit`` bytes."""
    blocks: list[list[TokenRow]] = []
    size = 0
    for row in rows:
        own = kept_positions([row]) * each
        if not blocks or size + own > limit:
            blocks.append([])
            size = 0
        blocks[-1].append(row)
        size += own
    return blocks


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


def check_cache(directory: Path) -> None:
    """See that a directory can hold features, before hours are spent on what comes before them.

    Raises:
        RedrafterError: If it is a file, cannot be looked into, or belongs to something else.
    """
    if not directory.exists() or (directory / INDEX).is_file():
        return
    try:
        occupied = any(directory.iterdir())
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


def _is_whole(path: Path) -> bool:
    """Whether a shard is there; written under another name, it is there only when complete."""
    if not path.is_file():
        return False
    try:
        _map(path)
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


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with writing(path, "the features before it are kept"), atomic_path(path) as temporary:
        save_file(arrays, str(temporary))


def _map(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, read only where they are looked at."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} is damaged")
        header = json.loads(file.read(size))
    whole = np.memmap(path, np.uint8, "r")  # one open file a shard, or there might be too many
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            if end > len(whole):
                raise ValueError(f"{path} is cut off")
            found[name] = whole[start:end].view(_KINDS[entry["dtype"]]).reshape(entry["shape"])
    return found


def _open(paths: Sequence[Path]) -> dict[str, ShardedArray]:
    shards = [_map(path) for path in paths]
    return {name: ShardedArray([shard[name] for shard in shards]) for name in shards[0]}
