"""From trained checkpoints to finished bundles: conversion and the drafter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mlx_redrafter import load
from mlx_redrafter.conversion import convert
from mlx_redrafter.text.places import CONFIG_FILE, DRAFTER_DIRECTORY, WEIGHTS_FILE
from mlx_redrafter.training import Progress, TrainingCallback, answer_file, train_drafter
from mlx_redrafter.training.record import CARD_FILE
from mlx_redrafter.training.store import target_hash
from mlx_redrafter.training.target_texts import AnswerSettings

from .files import replace_file

KEPT = {"README.md", "questions.jsonl", "prompts.jsonl"}  # ours, not the conversion's


def convert_bundle(checkpoint: Path, bundle: Path, work: Path) -> None:
    """Convert a Hugging Face checkpoint and put the files into ``bundle``.

    The conversion replaces its whole output directory; going through ``work`` keeps the bundle's
    own files.
    """
    convert(hf_path=checkpoint, mlx_path=work, dtype="bfloat16", overwrite=True)
    for source in sorted(work.iterdir()):
        if source.is_file() and source.name not in KEPT:
            with replace_file(bundle / source.name) as temporary:
                shutil.copyfile(source, temporary)


def train_bundle_drafter(bundle: Path, data: Path, work: Path, **settings: Any) -> None:
    """Train the bundle's drafter in ``work``, or go on with an interrupted run, and copy it.

    Where ``work`` holds a finished drafter it is only copied.
    """
    if not (work / WEIGHTS_FILE).is_file():
        train_drafter(
            relative(bundle),
            relative(data),
            relative(work),
            callback=Told(),
            resume=True,
            **settings,
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        with replace_file(bundle / DRAFTER_DIRECTORY / name) as temporary:
            shutil.copyfile(work / name, temporary)


def relative(path: Path) -> Path:
    """As seen from the working directory: drafters record where they come from."""
    return Path(os.path.relpath(path))


class Told(TrainingCallback):
    """Prints a line for each evaluation."""

    def note(self, text: str) -> None:
        """Print what is worth knowing."""
        print(text, flush=True)

    def report(self, progress: Progress) -> None:
        """Print how far the drafter has come."""
        if progress.decoded is not None:
            tokens = f"{progress.decoded.tokens_per_step:.2f} tokens per step"
            print(f"drafter step {progress.step}: loss {progress.loss:.3f}, {tokens}", flush=True)


def own_answers(
    bundle: Path, records: list[Any], output: Path, *, temperature: float, max_tokens: int
) -> list[Any]:
    """The target's own answers to the questions, or to the beginnings of the texts, in records.

    Answers that are in ``output`` already are not made again.
    """
    model, tokenizer = load(bundle, drafter=False)
    settings = AnswerSettings(max_tokens=max_tokens, temperature=temperature, chunk_size=64)
    sha256 = target_hash(model.target)
    return answer_file(
        output, model.target.model, tokenizer, records, settings, target_sha256=sha256
    )
