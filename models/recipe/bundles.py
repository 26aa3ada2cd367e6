"""From trained checkpoints to finished bundles: conversion and the drafter."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_redrafter import Target, distillation, save_drafter
from mlx_redrafter.conversion import convert
from mlx_redrafter.loading import tokenizer_hash

from .evaluate import load_float32
from .files import read_jsonl, replace_file, write_json

KEPT = {"README.md", "questions.jsonl", "prompts.jsonl"}  # ours, not the conversion's


@dataclass(frozen=True)
class DrafterRecipe:
    """Shape and training of a bundle's drafter."""

    exit_dim: int
    layers: int
    config: distillation.DistillationConfig
    draft_vocab_size: int = 2560  # 99.9 % of the tokens that answers use
    held_out: int = 400  # rows


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


def train_drafter(
    bundle: Path, train: Path, valid: Path, checkpoint: Path, recipe: DrafterRecipe
) -> dict[str, Any]:
    """Distil a drafter from the bundle's target, save it in the bundle; returns its figures."""
    model, tokenizer = load_float32(bundle)
    target = Target(model)
    rows = distillation.tokenize(read_jsonl(train), tokenizer)
    held_out = distillation.tokenize(read_jsonl(valid)[: recipe.held_out], tokenizer)
    drafter = distillation.make_drafter(
        target,
        distillation.token_counts(rows, target.vocab_size),
        exit_dim=recipe.exit_dim,
        num_draft_layers=recipe.layers,
        draft_vocab_size=recipe.draft_vocab_size,
        special=distillation.special_tokens(tokenizer),
        name=bundle.name,
        tokenizer_hash=tokenizer_hash(tokenizer),
        seed=recipe.config.seed,
    )
    measured = distillation.compute_features(target, drafter, held_out, recipe.config)

    def progress(report: distillation.Progress) -> None:
        print(f"drafter step {report.step}/{report.steps} loss {report.loss:.3f}", flush=True)

    distillation.train(
        target,
        drafter,
        distillation.compute_features(target, drafter, rows, recipe.config),
        recipe.config,
        checkpoint=checkpoint,
        resume=True,
        progress=progress,
    )
    agreement = distillation.evaluate(target, drafter, measured, unroll=recipe.config.unroll)
    figures = {
        "config": recipe.config.to_dict(),
        "top1_by_depth": agreement.top1,
        "top5_by_depth": agreement.top5,
        "chain_tokens_per_step": agreement.chain,
        "positions": agreement.positions,
    }
    write_json(checkpoint.with_suffix(".json"), figures)
    drafter.set_dtype(mx.bfloat16)  # as the target is stored
    save_drafter(bundle / "drafter", drafter)
    return figures
