"""A whole training run: from a model and data to a drafter on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit

from ..drafting.drafter import Drafter
from ..drafting.shape import BeamShape
from ..errors import RedrafterError
from ..ranges import of_kind_or_none
from ..sampling import SamplingConfig
from ..system.device import on_gpu
from ..system.files import local_path, only_one, size_words
from ..text.drafter_files import tokenizer_hash
from ..text.loading import load
from ..text.places import own_drafter
from .config import DistillationConfig
from .data import TokenRow
from .evaluation import DecodedFigures, draft_sizes, measure_decoding, prompts_of, target_sizes
from .feature_shards import check_cache
from .features import BatchSource, Features
from .hardware import is_packed, unpacked, unpacked_bytes, usual_learning_rate, usual_positions
from .hashes import rows_hash, target_hash, weights_hash
from .initial_drafter import first_drafter
from .loop import train
from .options import DEFAULT_STEPS, TrainingOptions
from .record import (
    RunLogger,
    RunPaths,
    TrainingCallback,
    TrainingReport,
    begin,
    check_run_dir,
    finish,
    forget_unbegun,
    step_of,
)
from .recording import PROMPTS, record_drafts
from .rows import given_records, rows_of, with_own_questions
from .setting import RunSetting
from .shape_check import check_first_drafter
from .store import features_to_learn_from, held_out_features, place_of_features
from .text_batches import TextBatches, passes_over_texts
from .trainer import check_checkpoint
from .unseen import MARKS, held_out_before, unseen_marks


def train_drafter(
    model: str | Path = "",
    data: str | Path = "",
    output: str | Path | None = None,
    *,
    callback: TrainingCallback | None = None,
    **settings: Any,
) -> TrainingReport:
    """Train a drafter for a model and write it, loadable at once.

    Args:
        model: The target: a directory or Hub repo.
        data: JSON Lines file, directory with train.jsonl and valid.jsonl, or Hub dataset.
        output: Directory of the drafter; by default ``drafter/`` in a local ``model``.
        callback: Hears how it goes.
        settings: See ``TrainingOptions``, whose fields they are.

    Returns:
        What came out. In ``output`` are then config.json, model.safetensors, training.json (what it
        was made of), recorded_drafts.json (how it drafts, for the planner) and training/ with the
        log, its curves, and the target's answers.

    Raises:
        RedrafterError: If something is wrong with the settings, the data or the disk, or training
            diverges.
    """
    values = {"model": model, "data": data, "output": output, **settings}
    options = TrainingOptions.from_values(values)
    # What evaluations would refuse is refused before hours are spent.
    BeamShape(options.beam_width, options.beam_length)
    SamplingConfig(temperature=options.eval_temperature, seed=options.seed)
    callback = of_kind_or_none(callback, "callback", TrainingCallback, "a TrainingCallback")
    callback = callback or TrainingCallback()
    given = own_drafter(options.model) if options.output is None else options.output
    paths = RunPaths(local_path(given))
    with only_one(paths.work, "training"):
        return _train(options, paths, callback)


def _train(options: TrainingOptions, paths: RunPaths, callback: TrainingCallback) -> TrainingReport:
    """Train where no other run can come between."""
    check_run_dir(paths, options)
    if options.cache_features is not None:
        check_cache(local_path(options.cache_features), paths.work)
    mx.reset_peak_memory()
    before = held_out_before(options.start_from)
    records, held = given_records(options, before, callback)
    run = _open(options, paths, callback)
    check_first_drafter(options, run.target, run.tokenizer, run.model.name)
    if options.resume and not paths.settings.is_file():
        callback.note(f"{paths.output} has no unfinished run to go on with, so one begins.")
    begin(paths, options)
    try:
        with wired_limit(run.target.model):
            if options.self_questions is not None:
                records, held = with_own_questions(run, records, held, before)
            marks = unseen_marks(records, held, options.start_from, before, callback.note)
            return _fit(run, *rows_of(run, records, held), marks)
    except Exception:
        forget_unbegun(paths)  # so that the corrected command is not told of an unfinished run
        raise


def _open(options: TrainingOptions, paths: RunPaths, callback: TrainingCallback) -> RunSetting:
    model, tokenizer = load(
        options.model,
        drafter=False,
        adapter_path=options.adapter_path,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        tokenizer_config=options.tokenizer_config,
        model_config=options.model_config,
    )
    refusal = model.target.refusal
    if refusal is not None:
        raise RedrafterError(f"No drafter can be trained for this model: {refusal}.")
    sizes = target_sizes(model.target, getattr(mx, options.dtype))
    sha256 = target_hash(model.target)
    run = RunSetting(options, paths, callback, model, tokenizer, sha256, sizes)
    return run if on_gpu() else _with_unpacked(run)


def _with_unpacked(run: RunSetting) -> RunSetting:
    """The same run with its target unpacked, where that is faster and there is room."""
    if not is_packed(run.model):
        return run
    model = unpacked(run.model)
    if model is not None:
        run.callback.note("The target is unpacked for its passes over the data.")
        return replace(run, model=model)
    if not on_gpu():
        run.callback.note(
            "The target's weights are quantised, which takes a CPU a hundred times as long, and "
            f"unpacked they would take {size_words(unpacked_bytes(run.model))}, more than half of "
            "the memory: train on a GPU, or where there is more memory."
        )
    return run


def _config(
    options: TrainingOptions, drafter: Drafter, rows: Sequence[TokenRow], where: str
) -> DistillationConfig:
    each = options.positions_per_step or usual_positions(drafter.config, options.unroll)
    steps = options.steps or DEFAULT_STEPS
    if options.epochs is not None:
        if drafter.remembers:
            passes = options.epochs * passes_over_texts(rows, each)
        elif where == "stream":
            passes = options.epochs * len(rows) / options.batch_size
        else:
            passes = options.epochs * sum(int(row.answer[2:].sum()) for row in rows) / each
        steps = max(1, math.ceil(passes / options.accumulate))
    return DistillationConfig(
        steps=steps,
        hard_weight=options.label_share,
        positions_per_step=each,
        learning_rate=options.learning_rate or usual_learning_rate(each * options.accumulate),
        **{
            name: getattr(options, name)
            for name in (
                "unroll", "depth_decay", "temperature", "top_k", "accumulate",
                "warmup", "weight_decay", "batch_tokens", "batch_size", "seed",
            )
        },
    )  # fmt: skip


def _fit(
    run: RunSetting, rows: list[TokenRow], held_rows: list[TokenRow], marks: list[str]
) -> TrainingReport:
    """Make the drafter, train it, write it."""
    options, paths, callback = run.options, run.paths, run.callback
    drafter = first_drafter(options, run.target, run.tokenizer, rows, run.model.name)
    dtype = getattr(mx, options.dtype)
    sizes = draft_sizes(run.target, drafter, dtype, stored=run.target_sizes)
    callback.note(sizes.described())
    if on_gpu():  # after the answers: token by token packed weights are read faster there
        run = _with_unpacked(run)
    where = place_of_features(options, run.target, drafter, rows, callback.note)
    config = _config(options, drafter, rows, where)
    callback.note(
        f"Steps of {config.positions_per_step:,} positions, "
        f"{config.learning_rate:.2g} the highest learning rate."
    )
    identity = _identity(run, rows, held_rows, where)
    if options.resume and paths.checkpoint.is_file():  # before hours of passes
        check_checkpoint(paths.checkpoint, drafter, config, identity=identity)
    features, held_out = _features(run, drafter, rows, held_rows, config, where)
    watch = RunLogger(paths, callback, step_of(paths.checkpoint) if options.resume else 0)
    prompts = prompts_of(held_rows, options.eval_prompts)
    drafter = _trained(run, drafter, features, held_out, prompts, config, identity, watch)
    report = watch.report(sizes)
    watch.draw()
    recorded = record_drafts(  # in float32, as the evaluations are
        run.target,
        drafter,
        prompts_of(held_rows, min(options.eval_prompts, PROMPTS)),
        max_tokens=options.eval_max_tokens,
        seed=options.seed,
        eos_token_ids=sorted(run.tokenizer.eos_token_ids),
        progress=partial(callback.stage, "recording drafts"),
    )
    drafter.set_dtype(dtype)
    card = {**_card(run, drafter, config, identity, report), MARKS: marks}
    finish(paths, drafter, card, recorded)
    return report


def _identity(
    run: RunSetting, rows: list[TokenRow], held_rows: list[TokenRow], where: str
) -> dict[str, Any]:
    """What has to be the same when the run goes on, beside its settings."""
    identity = {"target": run.target_sha256, "data": rows_hash(rows), "features": where}
    identity["held_out"] = rows_hash(held_rows)  # by which the best drafter is chosen
    if run.options.start_from is not None:  # now, not after hours in which the file may go
        identity["started_from"] = weights_hash(run.options.start_from)
    return identity


def _features(
    run: RunSetting,
    drafter: Drafter,
    rows: list[TokenRow],
    held_rows: list[TokenRow],
    config: DistillationConfig,
    where: str,
) -> tuple[Features | BatchSource, Features | TextBatches]:
    """What batches are taken from, and what evaluations measure on."""
    options, paths, callback = run.options, run.paths, run.callback
    features = features_to_learn_from(
        where,
        run.target,
        drafter,
        rows,
        config,
        directory=local_path(options.cache_features or paths.work / "features"),
        target_sha256=run.target_sha256,
        overwrite=options.overwrite,
        note=callback.note,
        progress=partial(callback.stage, "target's features"),
    )
    return features, held_out_features(
        where, run.target, drafter, held_rows, config, partial(callback.stage, "held-out features")
    )


def _trained(
    run: RunSetting,
    drafter: Drafter,
    features: Features | BatchSource,
    held_out: Features | TextBatches,
    prompts: list[list[int]],
    config: DistillationConfig,
    identity: dict[str, Any],
    watch: RunLogger,
) -> Drafter:
    """The drafter after all steps."""
    options, paths, callback = run.options, run.paths, run.callback
    return train(
        run.target,
        drafter,
        features,
        config,
        held_out=held_out,
        measure=_measure(run, prompts),
        checkpoint=paths.checkpoint,
        best=paths.best,
        resume=options.resume,
        report_every=options.report_every,
        evaluate_every=options.eval_every,
        save_every=options.save_every,
        patience=options.patience,
        identity=identity,
        progress=watch,
        after_step=partial(callback.stage, "training"),
    )


def _card(
    run: RunSetting,
    drafter: Drafter,
    config: DistillationConfig,
    identity: dict[str, Any],
    report: TrainingReport,
) -> dict[str, Any]:
    """What the drafter was made of."""
    start = identity.get("started_from")
    return {
        "started_from": None if start is None else {"weights_sha256": start},
        "target": {
            "name": run.model.name,
            "architecture": run.target.architecture,
            "weights_sha256": run.target_sha256,
            "tokenizer_sha256": tokenizer_hash(run.tokenizer),
        },
        "data_sha256": identity["data"],
        "features": identity["features"],
        "options": run.options.to_dict(),
        "training": config.to_dict(),
        "drafter": drafter.config.to_dict(),
        "figures": report.figures(),
    }


def _measure(run: RunSetting, prompts: list[list[int]]) -> Any:
    """Real decoding of held-out prompts with a drafter as it stands."""
    options = run.options

    def measure(drafter: Drafter) -> DecodedFigures:
        width = min(options.beam_width, drafter.config.head_size)
        return measure_decoding(
            run.target,
            drafter,
            prompts,
            beam=BeamShape(width=width, length=options.beam_length),
            max_tokens=options.eval_max_tokens,
            temperature=options.eval_temperature,
            seed=options.seed,
            eos_token_ids=sorted(run.tokenizer.eos_token_ids),
            progress=partial(run.callback.stage, "evaluation"),
        )

    return measure
