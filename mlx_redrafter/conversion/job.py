"""One conversion from beginning to end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.nn as nn
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from mlx.utils import tree_flatten

from ..drafting.drafter import Drafter, DrafterConfig
from ..errors import RedrafterError
from ..system.files import atomic_path, write_json
from ..system.workspace import clear_stale, publish, require_space, workspace
from ..target.target import Target
from ..text.loading import DRAFTER_DIRECTORY, check_pair, save_drafter, tokenizer_hash
from .card import write_card
from .check import check_bundle
from .drafter_part import (
    DrafterSource,
    build_drafter,
    drafter_report,
    find_drafter,
    infer_config,
    prepare_drafter,
)
from .options import MODES, Options
from .report import CheckReport, ConversionReport, PartReport, Progress
from .sources import Checkpoint, find_checkpoint, weight_files
from .target_part import TargetPart, load_target, model_bytes, transform
from .tensors import TensorInfo, check_finite, check_types, read_headers, split_drafter, stage
from .writing import compute, write_model

MODELS = Path("models")
COPIED = ("*.py", "generation_config.json")  # what mlx-lm's writer copies as well
HEADROOM = 1 << 24  # bytes for tokenizer, configuration and card


@dataclass
class _Job:
    """What is known while a conversion runs; paths are inside ``work`` until it is published."""

    options: Options
    out: Path
    work: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    target: TargetPart | None = None
    merged: dict[str, TensorInfo] = field(default_factory=dict)
    source: DrafterSource | None = None
    head: Drafter | None = None
    head_report: PartReport | None = None
    original: Drafter | None = None

    @property
    def bundle(self) -> Path:
        """The bundle being written."""
        return self.work / self.out.name


def run(options: Options, progress: Progress) -> ConversionReport:
    """Convert as asked.

    Raises:
        RedrafterError: If something does not fit; the output is then as it was before.
    """
    out = output_path(options)
    clear_stale(out)
    _check_output(options, out)
    with workspace(out) as work:
        job = _Job(options, out, work, progress)
        _read_target(job)
        _read_drafter(job)
        job.bundle.mkdir()
        if options.hf_path is not None:
            _write_target(job)
        _write_drafter(job)
        _publish(job)
        check = _check(job) if options.check else None
    if options.upload_repo is not None:
        _upload(out, options.upload_repo)
    assert job.target is not None
    return ConversionReport(
        path=out,
        target=job.target.report,
        drafter=job.head_report,
        notes=tuple(job.notes),
        check=check,
        uploaded=options.upload_repo,
    )


def output_path(options: Options) -> Path:
    """Where the bundle goes: as asked, or ``models/`` and the target's name."""
    if options.mlx_path is not None:
        return Path(options.mlx_path).expanduser().absolute()
    assert options.hf_path is not None
    name = Path(options.hf_path).expanduser().absolute().name
    if options.quantize:
        bits = options.q_bits or MODES[options.q_mode][1][0]
        name += f"-{bits}bit" if options.q_mode == "affine" else f"-{options.q_mode}"
    return (MODELS / name).absolute()


def _check_output(options: Options, out: Path) -> None:
    """Refuse before any work what could not be published."""
    inside = out / DRAFTER_DIRECTORY
    if options.hf_path is None:
        if not (out / "config.json").is_file():
            raise RedrafterError(
                f"There is no bundle at '{out}' to put the drafter into: convert its target "
                "first, or pass --hf-path as well."
            )
        if inside.exists() and not options.overwrite:
            raise RedrafterError(f"'{out}' has a drafter already: pass --overwrite to replace it.")
        return
    if not out.exists():
        return
    if not options.overwrite:
        raise RedrafterError(
            f"'{out}' exists already: pass --overwrite to replace it, or another --mlx-path."
        )
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
        raise RedrafterError(
            f"'{out}' is not a model directory, so it is not overwritten: choose another "
            "--mlx-path."
        )
    source = Path(options.hf_path).expanduser()
    if source.exists() and source.resolve().is_relative_to(out.resolve()):
        raise RedrafterError(
            "The target cannot be overwritten by its own conversion: choose another --mlx-path."
        )


def _read_target(job: _Job) -> None:
    """Open the target, or the existing bundle's, and check every tensor of it that is new."""
    options = job.options
    if options.hf_path is None:
        job.target = load_target(job.out, job.out.name, options.trust_remote_code)
        return
    found = find_checkpoint(options.hf_path, "The target", options.revision)
    if found.lone_file:
        raise RedrafterError(
            f"The target '{options.hf_path}' is a file: pass the directory that also holds its "
            "config.json and tokenizer."
        )
    if found.is_torch:
        require_space(job.work, sum(path.stat().st_size for path in found.files))
    staged = stage(found, job.work / "target", job.progress)
    own, job.merged = split_drafter(read_headers(staged.files))
    # Quantised checkpoints hold integers too, but no GPU of mlx's computes in double precision.
    check_types({k: info for k, info in own.items() if info.dtype == "F64"}, "The target")
    job.checkpoint = replace(staged, directory=found.directory)
    job.target = load_target(staged.directory, found.name, options.trust_remote_code)
    check_finite(own, "The target", job.progress)


def _read_drafter(job: _Job) -> None:
    """Find, check and load the drafter, if there is one."""
    source = _drafter_source(job)
    _explain_missing(job, source)
    if source is None:
        return
    assert job.target is not None
    job.source = source
    job.notes += source.notes
    target = Target(job.target.model)
    if source.config is None:
        config = infer_config(source.tensors, target.vocab_size)
        job.notes.append(
            f"The drafter's configuration was inferred from its tensors: hidden_size "
            f"{config.hidden_size}, exit_dim {config.exit_dim}, num_draft_layers "
            f"{config.num_draft_layers}, rnn {str(config.rnn).lower()}."
        )
    else:
        config = DrafterConfig.from_dict(source.config)
    job.head = build_drafter(source, config)
    check_pair(config, target, job.target.tokenizer)
    check_finite(
        {source.prefix + name: info for name, info in source.tensors.items()},
        "The drafter",
        job.progress,
    )
    if target.refusal is not None:
        job.notes.append(f"No drafting with this target: {target.refusal}.")


def _drafter_source(job: _Job) -> DrafterSource | None:
    location = job.options.drafter
    if location is not None:
        checkpoint = find_checkpoint(location, "The drafter")
        if job.merged:
            job.notes.append("The drafter saved with the target gave way to --drafter.")
    elif job.merged:
        assert job.checkpoint is not None
        return find_drafter(job.checkpoint.name, job.merged, job.work / "target", False)
    elif job.checkpoint is not None and _inner(job.checkpoint) is not None:
        checkpoint = job.checkpoint
    else:
        return None
    checkpoint = _inner(checkpoint) or checkpoint
    staged = stage(checkpoint, job.work / "drafter", job.progress)
    headers = read_headers(staged.files)
    return find_drafter(checkpoint.name, headers, staged.directory, not checkpoint.lone_file)


def _inner(checkpoint: Checkpoint) -> Checkpoint | None:
    """The drafter inside a bundle."""
    directory = checkpoint.directory / DRAFTER_DIRECTORY
    if checkpoint.lone_file or not (directory / "config.json").is_file():
        return None
    return Checkpoint(checkpoint.name, directory, weight_files(directory, "The drafter"))


def _explain_missing(job: _Job, source: DrafterSource | None) -> None:
    if source is not None:
        return
    options = job.options
    if options.drafter_q_bits is not None or options.drafter_rnn_q_bits is not None:
        raise RedrafterError(
            "--drafter-q-bits was given but there is no drafter: pass one with --drafter."
        )
    if (job.out / DRAFTER_DIRECTORY).exists():
        raise RedrafterError(
            f"Overwriting '{job.out}' would delete the drafter in it: keep it with --drafter "
            f"'{job.out / DRAFTER_DIRECTORY}', or remove that directory first."
        )


def _write_target(job: _Job) -> None:
    assert job.target is not None
    assert job.checkpoint is not None
    part = transform(job.target, job.options)
    assert part.report is not None
    head_bytes = model_bytes(job.head) if job.head is not None else 0
    require_space(job.work, part.report.bytes_after + head_bytes + HEADROOM)
    write_model(part.model, part.config, job.bundle, job.progress, "Writing the target")
    part.tokenizer.save_pretrained(job.bundle)
    for pattern in COPIED:
        for path in sorted(job.checkpoint.directory.glob(pattern)):
            shutil.copy(path, job.bundle)


def _write_drafter(job: _Job) -> None:
    target, source = job.target, job.source
    if job.head is not None and source is not None and target is not None:
        config, before = job.head.config, model_bytes(job.head)
        job.head, left = prepare_drafter(job.head, job.options)
        if config.quantization is None and job.head.config.quantization is not None:
            job.original = build_drafter(source, config)
        made_for = {"name": target.name, **(config.target or {})}
        made_for["tokenizer_hash"] = tokenizer_hash(target.tokenizer)
        job.head.config = replace(job.head.config, target=made_for)
        job.head_report = drafter_report(job.head, source.name, before, left)
        require_space(job.work, job.head_report.bytes_after + HEADROOM)
        _save_head(job, job.head, source.name)
    base = job.options.hf_path
    is_repo = base is not None and not Path(base).expanduser().exists()
    text = write_card(
        job.out,
        None if job.checkpoint is None else job.checkpoint.directory / "README.md",
        None if target is None else target.report,
        job.head_report,
        base if is_repo else None,
        job.options.upload_repo or job.out.name,
    )
    (job.bundle / "README.md").write_text(text, "utf-8")


def _save_head(job: _Job, head: Drafter, name: str) -> None:
    done, total = 0, model_bytes(head)
    for key, array in tree_flatten(head.parameters()):
        compute(key, array)
        done += array.nbytes
        job.progress("Writing the drafter", done, total)
    directory = job.bundle / DRAFTER_DIRECTORY
    save_drafter(directory, head)
    write_json(directory / "config.json", {**head.config.to_dict(), "converted_from": name})
    read_headers([directory / "model.safetensors"])


def _publish(job: _Job) -> None:
    """Move what is finished to its place."""
    if job.options.hf_path is not None:
        publish(job.bundle, job.out)
        return
    clear_stale(job.out / DRAFTER_DIRECTORY)
    publish(job.bundle / DRAFTER_DIRECTORY, job.out / DRAFTER_DIRECTORY)
    with atomic_path(job.out / "README.md") as temporary:
        shutil.copyfile(job.bundle / "README.md", temporary)


def _check(job: _Job) -> CheckReport:
    options, checkpoint, original = job.options, job.checkpoint, job.original
    staged = job.work / "target"

    def reference() -> nn.Module:
        return transform(load_target(staged, "", options.trust_remote_code), options).model

    return check_bundle(
        job.out,
        None if checkpoint is None else reference,
        original,
        job.progress,
    )


def _upload(bundle: Path, repo: str) -> None:
    try:
        api = HfApi()
        api.create_repo(repo_id=repo, exist_ok=True)
        api.upload_folder(folder_path=bundle, repo_id=repo)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RedrafterError(
            f"The bundle is complete at '{bundle}', but '{repo}' did not take it ({reason}): "
            "check 'hf auth login' and upload it with 'hf upload'."
        ) from None
