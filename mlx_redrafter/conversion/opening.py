"""Opening what is converted: the target and its drafter, checked, their arrays unread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ..drafting.config import DrafterConfig
from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.workspace import require_space
from ..target.target import Target
from ..text.boundary import first_forward
from ..text.drafter_files import check_pair
from ..text.places import DRAFTER_DIRECTORY, has_one_revision
from .configs import as_given
from .drafter_part import DrafterSource, build_drafter, find_drafter, infer_config
from .options import Options
from .report import Progress
from .sources import Checkpoint, find_checkpoint, weight_files
from .staging import stage
from .target_part import TargetPart, load_target
from .tensors import TensorInfo, check_finite, check_types, read_headers, split_drafter

REMEDY = "choose another --mlx-path"


@dataclass(frozen=True)
class OpenTarget:
    """The target to convert, or that of the bundle that gets a drafter.

    Attributes:
        part: The model and its tokenizer.
        checkpoint: Where it came from, None where it is the bundle's own.
        staged: The same in the form that mlx-lm reads, None likewise.
        merged: Tensors of a drafter that its files hold too.
        notes: What a person should know of it.
    """

    part: TargetPart
    checkpoint: Checkpoint | None = None
    staged: Checkpoint | None = None
    merged: Mapping[str, TensorInfo] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenDrafter:
    """The drafter to convert.

    Attributes:
        source: Where its tensors are.
        head: The head that they make.
        notes: What was inferred or left out.
    """

    source: DrafterSource
    head: Drafter
    notes: tuple[str, ...]


def open_target(options: Options, out: Path, work: Path, progress: Progress) -> OpenTarget:
    """Open the target, or the existing bundle's, and check every tensor of it that is new.

    Args:
        options: What is asked for.
        out: The bundle.
        work: Directory for what is only needed meanwhile.
        progress: Told about reading.

    Raises:
        RedrafterError: If it is incomplete, damaged or unknown.
    """
    if options.hf_path is None:
        return OpenTarget(load_target(out, out.name, options.trust_remote_code))
    found = find_checkpoint(options.hf_path, "The target", options.revision, options.gguf_file)
    if found.lone_file and not found.is_gguf:
        raise RedrafterError(
            f"The target '{options.hf_path}' is a file: pass the directory that also holds its "
            "config.json and tokenizer."
        )
    if found.is_torch:
        require_space(work, sum(path.stat().st_size for path in found.files), REMEDY)
    staged, notes = stage(found, work / "target", progress, options)
    with as_given(staged.directory, found.files[0] if found.is_gguf else found.directory):
        own, merged = split_drafter(read_headers(staged.files))
        # Quantised checkpoints hold integers too, but no GPU of mlx's computes in double precision.
        check_types({k: info for k, info in own.items() if info.dtype == "F64"}, "The target")
        part = load_target(staged.directory, found.name, options.trust_remote_code, len(own))
    check_finite(own, "The target", progress)
    return OpenTarget(part, found, staged, merged, (*_unused(options), *notes))


def _unused(options: Options) -> tuple[str, ...]:
    """What was asked for in vain; mlx-lm, too, takes no offence."""
    if options.revision is None or options.hf_path is None or not has_one_revision(options.hf_path):
        return ()
    return (f"'{options.hf_path}' has no other revisions, so --revision was not used.",)


def open_drafter(
    options: Options, target: OpenTarget, work: Path, progress: Progress
) -> OpenDrafter | None:
    """Find, check and load the drafter, if there is one.

    Args:
        options: What is asked for.
        target: The target that it is for.
        work: Directory for what is only needed meanwhile.
        progress: Told about reading.

    Raises:
        RedrafterError: If it is damaged, or another target's.
    """
    source, notes = _find_source(options, target, work, progress)
    if source is None:
        return None
    notes += source.notes
    with first_forward("The target"):  # before anything of this package touches it; shapes only
        target.part.model(mx.array([[0]]), cache=make_prompt_cache(target.part.model))
    model = Target(target.part.model)
    if source.config is None:
        config = infer_config(source.tensors, model.vocab_size)
        notes += (
            f"The drafter's configuration was inferred from its tensors: hidden_size "
            f"{config.hidden_size}, exit_dim {config.exit_dim}, num_draft_layers "
            f"{config.num_draft_layers}, rnn {str(config.rnn).lower()}.",
        )
    else:
        config = DrafterConfig.from_dict(source.config)
    head = build_drafter(source, config)
    check_pair(config, model, target.part.tokenizer)
    tensors = {source.prefix + name: info for name, info in source.tensors.items()}
    check_finite(tensors, "The drafter", progress)
    if model.refusal is not None:
        notes += (f"No drafting with this target: {model.refusal}.",)
    return OpenDrafter(source, head, notes)


def _find_source(
    options: Options, target: OpenTarget, work: Path, progress: Progress
) -> tuple[DrafterSource | None, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if options.drafter is not None:
        checkpoint = find_checkpoint(options.drafter, "The drafter")
        if checkpoint.is_gguf:
            raise RedrafterError(
                f"The drafter '{options.drafter}' is a GGUF file, which holds targets only: pass "
                "a directory, a Hub repository or a weight file."
            )
        if target.merged:
            notes = ("The drafter saved with the target gave way to --drafter.",)
    elif target.merged and target.checkpoint is not None:
        whole = target.checkpoint
        return find_drafter(whole.name, target.merged, whole.directory, False), notes
    elif target.checkpoint is not None and inner_drafter(target.checkpoint) is not None:
        checkpoint = target.checkpoint
    else:
        return None, notes
    checkpoint = inner_drafter(checkpoint) or checkpoint
    staged, _ = stage(checkpoint, work / "drafter", progress)
    headers = read_headers(staged.files)
    found = find_drafter(checkpoint.name, headers, checkpoint.directory, not checkpoint.lone_file)
    return found, notes


def inner_drafter(checkpoint: Checkpoint) -> Checkpoint | None:
    """The drafter inside a bundle."""
    directory = checkpoint.directory / DRAFTER_DIRECTORY
    if checkpoint.lone_file or not (directory / "config.json").is_file():
        return None
    files = weight_files(directory, "The drafter", checkpoint.root)
    return replace(checkpoint, directory=directory, files=files)


def require_drafter(options: Options, out: Path, found: OpenDrafter | None) -> None:
    """Refuse a conversion that would need a drafter, or delete one.

    Raises:
        RedrafterError: Saying which.
    """
    if found is not None:
        return
    if options.drafter_q_bits is not None or options.drafter_rnn_q_bits is not None:
        raise RedrafterError(
            "--drafter-q-bits was given but there is no drafter: pass one with --drafter."
        )
    if (out / DRAFTER_DIRECTORY).exists():
        raise RedrafterError(
            f"Overwriting '{out}' would delete the drafter in it: keep it with --drafter "
            f"'{out / DRAFTER_DIRECTORY}', or remove that directory first."
        )
