"""A checkpoint in the form that mlx-lm reads: model*.safetensors beside its small files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from ..gguf import Written, read_gguf, write_model
from ..text.places import GGUF
from .options import Options
from .report import Progress
from .sources import SAFETENSORS, TORCH_SUFFIXES, Checkpoint, inside
from .torch_files import torch_to_safetensors

# Forms of weights, of which a bundle has its own.
WEIGHTS = (SAFETENSORS, *TORCH_SUFFIXES, GGUF, ".onnx", ".onnx_data", ".h5", ".msgpack", ".npz")
SKIPPED = ("drafter", "__pycache__")


def stage(
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    options: Options | None = None,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Bring a checkpoint into mlx-lm's form.

    Safetensors and small files become links; PyTorch and GGUF files are rewritten.

    Args:
        checkpoint: Where the files are.
        directory: Fresh directory to fill.
        progress: Told about rewritten weights.
        options: What is made of a target; its type is that of what GGUF files do not have packed,
            by default what their own types suggest.

    Returns:
        The same checkpoint, in ``directory``, and what a person should know of it.

    Raises:
        RedrafterError: If a file cannot be read, or lies outside the checkpoint.
    """
    directory.mkdir()
    if checkpoint.is_gguf:
        options = options or Options()
        kind = None if options.dtype is None else getattr(mx, options.dtype)
        model = read_gguf(checkpoint.files[0])
        written = write_model(model, directory, progress, options.dequantize, kind)
        files = tuple(sorted(directory.glob("model*.safetensors")))
        # Nothing beside the file belongs to it.
        staged = Checkpoint(checkpoint.name, directory, files, root=directory)
        return staged, _gguf_notes(written, options)
    for path in small_files(checkpoint):
        link = directory / path.relative_to(checkpoint.directory)
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(link, path)
    if checkpoint.is_torch:
        files = torch_to_safetensors(checkpoint.files, directory, progress)
    else:
        files = tuple(
            directory / f"model-{i:05d}.safetensors" for i in range(1, len(checkpoint.files) + 1)
        )
        for link, path in zip(files, checkpoint.files, strict=True):
            _link(link, path)
    staged = Checkpoint(
        checkpoint.name, directory, files, checkpoint.lone_file, root=checkpoint.root
    )
    return staged, ()


def _gguf_notes(written: Written, options: Options) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if written.kept:
        notes += (_kept_words(written),)
    if written.unpacked:
        notes += (_unpacked_words(written, options),)
    return notes


def _kept_words(written: Written) -> str:
    """What became of the blocks that were kept, whose scales are float16."""
    blocks = f"Blocks of {' and '.join(written.kept)} were kept"
    if written.dtype == "bfloat16":  # beside which float16 would make mlx compute in float32
        return f"{blocks}, their scales in bfloat16: --dtype float16 or float32 rounds none."
    return f"{blocks} bit for bit."


def _unpacked_words(written: Written, options: Options) -> str:
    """What became of the blocks that were not kept."""
    blocks = f"Blocks of {' and '.join(written.unpacked)}"
    if options.dequantize:
        return f"{blocks} became {written.dtype}."
    if options.quantize:
        return f"{blocks} became {written.dtype}, which -q quantised."
    return f"{blocks}, which are not kept, became {written.dtype}: -q quantises these layers again."


def small_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Everything but weights, in subdirectories too.

    Yields:
        Regular files, or links to files of the checkpoint.

    Raises:
        RedrafterError: If a link leads out of the checkpoint.
    """
    for place, folders, names in os.walk(checkpoint.directory):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix in WEIGHTS or ".index.json" in name:
                continue
            if path.is_file():
                inside(path, checkpoint.root)
                yield path
        if checkpoint.lone_file:
            return


def _link(link: Path, path: Path) -> None:
    try:
        link.symlink_to(path.resolve())
    except OSError:  # exFAT and other file systems without links
        shutil.copyfile(path, link)
