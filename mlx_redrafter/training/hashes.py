"""By what a run knows its target, its data and its drafter again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..text.loading import resolve_path
from ..text.places import WEIGHTS_FILE
from .data import TokenRow
from .teacher import Teacher


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
