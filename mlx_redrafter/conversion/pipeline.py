"""One conversion from beginning to end; each stage returns what the next ones need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.nn as nn
from huggingface_hub import HfApi
from mlx.utils import tree_flatten

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.files import atomic_path, is_there, local_path, write_json
from ..system.workspace import publish, require_space, workspace
from ..text.drafter_files import load_recorded, save_recorded, tokenizer_hash, write_drafter
from ..text.places import DRAFTER_DIRECTORY, HUB_ERRORS, KNOWN
from .card import write_card
from .check import check_bundle
from .destination import Destination, find_destination
from .drafter_part import build_drafter, drafter_report, prepare_drafter
from .opening import (
    REMEDY,
    OpenDrafter,
    OpenTarget,
    open_drafter,
    open_target,
    require_drafter,
)
from .options import Options
from .report import CheckReport, ConversionReport, PartReport, Progress
from .staging import small_files
from .target_part import load_target, model_bytes, transform
from .tensors import read_headers
from .writing import compute, write_model

HEADROOM = 1 << 24  # bytes for tokenizer, configuration and card
# What a bundle has of its own.
OWN_FILES = ("config.json", "README.md")


def run(options: Options, progress: Progress) -> ConversionReport:
    """Convert as asked.

    Raises:
        RedrafterError: If something does not fit; the output is then as it was before.
    """
    destination = find_destination(options)
    out = destination.bundle
    with workspace(destination.neighbour, REMEDY) as work:
        target = open_target(options, out, work, progress)
        drafter = open_drafter(options, target, work, progress)
        require_drafter(options, out, drafter)
        bundle = work / out.name
        bundle.mkdir()
        part = None
        if options.hf_path is not None:
            part = _write_target(options, target, drafter, bundle, progress)
        head = (
            None if drafter is None else _write_drafter(options, target, drafter, bundle, progress)
        )
        _write_card(options, target, part, head, out, bundle)
        check = None
        if options.check:
            check = _check(options, target, head, bundle, out, progress)
        _publish(options, bundle, destination)
    if options.upload_repo is not None:
        _upload(out, options.upload_repo)
    return ConversionReport(
        path=out,
        target=part,
        drafter=None if head is None else head.report,
        notes=(*target.notes, *target.part.notes, *(() if drafter is None else drafter.notes)),
        check=check,
        uploaded=options.upload_repo,
    )


def _write_target(
    options: Options,
    target: OpenTarget,
    drafter: OpenDrafter | None,
    bundle: Path,
    progress: Progress,
) -> PartReport:
    """Write the target and everything that lies beside its weights; the drafter comes later."""
    assert target.staged is not None
    # With a drafter, -q may be meant for that alone.
    kept = drafter is not None and (
        options.drafter is not None or drafter.head.config.quantization is None
    )
    part = transform(target.part, options, kept)
    assert part.report is not None
    spare = 0 if drafter is None else model_bytes(drafter.head)
    require_space(bundle, part.report.bytes_after + spare + HEADROOM, REMEDY)
    write_model(part.model, part.config, bundle, progress, "Writing the target")
    part.tokenizer.save_pretrained(bundle)
    _copy_others(target, bundle)
    return part.report


def _copy_others(target: OpenTarget, bundle: Path) -> None:
    """Copy what no writer wrote: the tokenizer's other files, templates, code, the licence."""
    assert target.staged is not None
    source = replace(target.staged, root=target.staged.directory, lone_file=False)
    if target.checkpoint is not None and not target.checkpoint.is_gguf:
        source = target.checkpoint
    for path in small_files(source):
        place = bundle / path.relative_to(source.directory)
        if not place.exists() and str(place.relative_to(bundle)) not in OWN_FILES:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


@dataclass(frozen=True)
class _WrittenDrafter:
    """A drafter that lies in the bundle.

    Attributes:
        report: Its sizes.
        original: The head before it was quantised here, None where it was not.
    """

    report: PartReport
    original: Drafter | None


def _write_drafter(
    options: Options, target: OpenTarget, found: OpenDrafter, bundle: Path, progress: Progress
) -> _WrittenDrafter:
    config, before = found.head.config, model_bytes(found.head)
    head, left = prepare_drafter(found.head, options)
    original = None
    if config.quantization is None and head.config.quantization is not None:
        original = build_drafter(found.source, config)
    made_for = {"name": target.part.name, **(config.target or {})}
    made_for["tokenizer_hash"] = tokenizer_hash(target.part.tokenizer)
    head.config = replace(head.config, target=made_for)
    report = drafter_report(head, found.source.name, before, left)
    require_space(bundle, report.bytes_after + HEADROOM, REMEDY)
    recorded = load_recorded(found.source.directory)
    _save_head(bundle / DRAFTER_DIRECTORY, head, found.source.name, progress)
    if recorded is not None:  # quantised or not, it drafts much the same
        save_recorded(bundle / DRAFTER_DIRECTORY, recorded)
    return _WrittenDrafter(report, original)


def _save_head(directory: Path, head: Drafter, name: str, progress: Progress) -> None:
    done, total = 0, model_bytes(head)
    for key, array in tree_flatten(head.parameters()):
        compute(key, array)
        done += array.nbytes
        progress("Writing the drafter", done, total)
    write_drafter(directory, head)
    write_json(directory / "config.json", {**head.config.to_dict(), "converted_from": name})
    read_headers([directory / "model.safetensors"])


def _write_card(
    options: Options,
    target: OpenTarget,
    part: PartReport | None,
    head: _WrittenDrafter | None,
    out: Path,
    bundle: Path,
) -> None:
    checkpoint = target.checkpoint
    own_card = checkpoint is not None and not checkpoint.is_gguf
    text = write_card(
        out,
        checkpoint.directory / "README.md" if checkpoint is not None and own_card else None,
        part,
        None if head is None else head.report,
        _repo_of(options),
        options.upload_repo or out.name,
    )
    (bundle / "README.md").write_text(text, "utf-8")


def _repo_of(options: Options) -> str | None:
    """The target's Hub repository as a card names it, None for a local target."""
    named = options.hf_path
    if named is None or is_there(local_path(named)):
        return None
    return KNOWN[named].repo if named in KNOWN else named.partition("@")[0]


def _publish(options: Options, bundle: Path, destination: Destination) -> None:
    """Move what is finished to its place."""
    if options.hf_path is not None:
        publish(bundle, destination.place, REMEDY)
        return
    publish(bundle / DRAFTER_DIRECTORY, destination.place, REMEDY)
    with atomic_path(destination.bundle / "README.md") as temporary:
        shutil.copyfile(bundle / "README.md", temporary)


def _check(
    options: Options,
    target: OpenTarget,
    head: _WrittenDrafter | None,
    bundle: Path,
    out: Path,
    progress: Progress,
) -> CheckReport:
    """Check what is finished where it lies, under the name that it is going to have."""
    reference, original = _reference(options, target), None if head is None else head.original
    whole = options.hf_path is not None
    try:
        report = check_bundle(
            bundle if whole else out,
            reference,
            original,
            progress,
            drafter=None if whole else bundle / DRAFTER_DIRECTORY,
            trusted=options.trust_remote_code,
        )
    except RedrafterError as error:
        raise RedrafterError(str(error).replace(str(bundle), str(out))) from error
    failure = report.failure
    return replace(report, failure=failure and failure.replace(str(bundle), str(out)))


def _reference(options: Options, target: OpenTarget) -> Callable[[], nn.Module] | None:
    """Makes mlx-lm's conversion of the same checkpoint again, in memory."""
    staged = target.staged
    if staged is None:
        return None

    def make() -> nn.Module:
        part = load_target(staged.directory, "", options.trust_remote_code)
        return transform(part, options, kept=True).model

    return make


def _upload(bundle: Path, repo: str) -> None:
    try:
        api = HfApi()
        api.create_repo(repo_id=repo, exist_ok=True)
        api.upload_folder(folder_path=bundle, repo_id=repo)
    except HUB_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise RedrafterError(
            f"The bundle is complete at '{bundle}', but '{repo}' did not take it ({reason}): "
            "check 'hf auth login' and upload it with 'hf upload'."
        ) from None
