"""PyTorch pickles to safetensors, a few tensors at a time."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from .report import Progress

GROUP_BYTES = 1 << 28
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PRECISIONS = ("torch.float32", "torch.float16", "torch.bfloat16")


def torch_to_safetensors(
    files: tuple[Path, ...], directory: Path, progress: Progress, group_bytes: int = GROUP_BYTES
) -> tuple[Path, ...]:
    """Write the tensors of PyTorch files as safetensors, bit for bit.

    The files are memory-mapped and written in groups of at most ``group_bytes`` (a larger tensor
    alone), so that memory holds one group.

    Args:
        files: .bin, .pt or .pth files.
        directory: Existing directory that receives model-*.safetensors.
        progress: Told the bytes written.
        group_bytes: Largest size of one written file.

    Returns:
        The written files.

    Raises:
        RedrafterError: If PyTorch is missing, a file is damaged, or a pickle carries code.
    """
    save = _safetensors_writer()
    total = sum(path.stat().st_size for path in files)
    done = 0
    written: list[Path] = []
    for source in files:
        for group in _groups(load_torch(source), group_bytes):
            target = directory / f"model-{len(written) + 1:05d}.safetensors"
            save(group, str(target))
            written.append(target)
            done += sum(tensor.nbytes for tensor in group.values())
            progress("Reading PyTorch weights", min(done, total), total)
    progress("Reading PyTorch weights", total, total)
    return tuple(written)


def load_torch(path: Path) -> dict[str, Any]:
    """Read a PyTorch checkpoint's tensors, memory-mapped, without running code from it.

    Returns:
        Tensors by name, taken out of a surrounding {"state_dict": ...} where there is one.

    Raises:
        RedrafterError: If the file is damaged, holds no tensors, or its pickle carries code.
    """
    _safetensors_writer()
    import torch

    try:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Files older than PyTorch 1.6 are no archives and cannot be mapped.
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RedrafterError(
            f"'{path}' is truncated or damaged ({reason}): download or export it again."
        ) from None
    return _tensors(path, values)


def _tensors(path: Path, values: Any) -> dict[str, Any]:
    import torch

    for name in WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(name), dict):
            values = values[name]
            break
    if not isinstance(values, dict) or not any(
        isinstance(v, torch.Tensor) for v in values.values()
    ):
        raise RedrafterError(
            f"'{path}' holds no dictionary of tensors: save the model's state_dict()."
        )
    for name, tensor in values.items():
        if not isinstance(tensor, torch.Tensor):
            raise RedrafterError(
                f"'{path}' holds '{name}' of type {type(tensor).__name__} where a tensor is "
                "expected: save the model's state_dict() alone."
            )
        if tensor.is_floating_point() and str(tensor.dtype) not in PRECISIONS:
            raise RedrafterError(
                f"The tensor '{name}' in '{path}' is {tensor.dtype}, expected float32, float16 or "
                "bfloat16: convert it with .to() before saving."
            )
    return values


def _groups(tensors: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Split into groups of at most ``limit`` bytes, dropping each tensor once it is passed on."""
    group: dict[str, Any] = {}
    size = 0
    for name in list(tensors):
        tensor = tensors.pop(name)
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = {}, 0
        # A copy, since tied tensors share storage, which safetensors refuses.
        group[name] = tensor.detach().clone().contiguous()
        size += tensor.nbytes
    if group:
        yield group


def _safetensors_writer() -> Any:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise RedrafterError(
            "Reading .bin, .pt and .pth files needs PyTorch, which is not installed: "
            "run pip install torch, or pass a safetensors checkpoint."
        ) from None
    return save_file


def _refusal(path: Path, message: str) -> RedrafterError:
    """The sentence for a pickle that PyTorch would not load with ``weights_only``."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    code = found.group(1) if found else _called_name(path)
    if code is None:
        return RedrafterError(
            f"'{path}' is not a PyTorch checkpoint that can be read: download or export it again "
            "(a file of a few bytes is often a Git LFS pointer)."
        )
    return RedrafterError(
        f"'{path}' was refused and nothing in it was run: its pickle carries code ('{code}'), and "
        "only tensors are read; save a state_dict(), or pass a safetensors checkpoint."
    )


def _called_name(path: Path) -> str | None:
    """What a bare pickle would import, found by reading its opcodes; None if it imports nothing."""
    strings: list[str] = []
    try:
        with path.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, OSError, EOFError):
        return None
    return None
