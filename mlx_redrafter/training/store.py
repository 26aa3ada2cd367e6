"""Where the features of a run are kept: in memory, nowhere, or on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..drafting.drafter import Drafter
from ..system.files import size_words
from .config import DistillationConfig
from .data import TokenRow
from .feature_shards import StorePlan, stored_features
from .features import BatchSource, Features
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
    progress: Callable[[int, int], None],
) -> Features | TextBatches:
    """What evaluations measure on: the first held-out rows, at most ``MEASURED_POSITIONS``.

    Args are as in :func:`features_to_learn_from`.
    """
    totals = np.cumsum([kept_positions([row]) for row in rows])
    few = list(rows[: max(1, int((totals <= MEASURED_POSITIONS).sum()))])
    if drafter.remembers:
        return TextBatches(target, drafter, few, config)
    kept = np.float32 if where == "stream" else np.float16
    return compute_features(target, drafter, few, config, dtype=kept, progress=progress)
