"""Where files of others are read: whatever they make go wrong is one sentence that names them.

What runs inside is code of mlx-lm, transformers and the checkpoint itself, so an exception of
whatever kind is the file's doing. The project's own code stays outside, and keeps its tracebacks.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.visible import visible_line

LONGEST_REASON = 240
AGAIN = "fetch or convert it again"
# How mlx refuses what it has no kernel for on this machine.
_NO_METAL = "No Metal back-end"
_EXPERTS = "[GatherMM::eval] Currently only supports float32"
# A configuration takes kilobytes; a tokenizer's vocabulary some megabytes.
LARGEST_JSON = 64 << 20
# Libraries read these whole.
TEXTS, LARGEST_TEXT = (".json", ".jinja"), 256 << 20


@contextmanager
def reading(what: object, remedy: str = AGAIN) -> Iterator[None]:
    """Turn whatever goes wrong inside into one sentence.

    Args:
        what: The file or directory that is read.
        remedy: What to do about it.

    Raises:
        RedrafterError: Instead of everything but an interruption.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, RedrafterError):
        raise
    # Panics of the Rust code in tokenizers derive from BaseException.
    except BaseException as error:
        raise RedrafterError(f"{what} cannot be loaded ({reason(error)}): {remedy}.") from error


@contextmanager
def first_forward(model: object, adapter: object = None, remedy: str = AGAIN) -> Iterator[None]:
    """Turn whatever goes wrong where a model is run for the first time into one sentence.

    Args:
        model: Its directory, or what else to call it.
        adapter: The directory of its adapter, None where it has none.
        remedy: What to do about it, where it has none.

    Raises:
        RedrafterError: Instead of everything but an interruption.
    """
    what = f"{model}, whose configuration and weights do not go together,"
    if adapter is not None:
        what = f"{model} with the adapter {adapter}"
        remedy = "load it without, or train one for other layers (keys in lora_parameters)"
    with reading(what, remedy):
        try:
            yield
        except RuntimeError as error:
            if _EXPERTS in str(error):
                raise RedrafterError(
                    f"{model} cannot run on this machine in this precision: on a CPU mlx computes "
                    "mixtures of experts in float32 only; ask for float32."
                ) from error
            if _NO_METAL not in str(error):
                raise
            raise RedrafterError(
                f"{model} cannot run on this machine: mlx-lm computes its layers with kernels "
                "that are written for Metal only; use it on a Mac with Apple silicon."
            ) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's path before what is said of its values.

    Raises:
        RedrafterError: Instead of one that does not name the file.
    """
    try:
        yield
    except RedrafterError as error:
        if str(path) in str(error):
            raise
        raise RedrafterError(f"{path}: {error}") from error


def reason(error: BaseException) -> str:
    """An exception in one line, with its kind where the text alone says too little."""
    text = visible_line(str(error), LONGEST_REASON)
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return "there is not enough memory for what it asks for"
    if isinstance(error, KeyError | IndexError | AssertionError) or not text:
        return f"{kind}: {text}" if text else kind
    return text.rstrip(".")


def read_json(path: Path, owner: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        owner: What would have one.

    Raises:
        RedrafterError: If the file is missing, no ordinary file, or not a JSON object.
    """
    if not path.is_file():
        raise RedrafterError(f"{path.parent} has no {path.name}, so it is not {owner}.")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise RedrafterError(f"{path} is larger than {LARGEST_JSON >> 20} MiB: check the file.")
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RedrafterError(f"{path} is not readable JSON: {reason(error)}.") from error
    if not isinstance(value, dict):
        raise RedrafterError(f"{path} holds no JSON object, so it is not {owner}'s.")
    return value


def check_ordinary(directory: Path) -> None:
    """Refuse what would block or never end when it is read: pipes, devices, sockets.

    Directories inside are looked into too, as libraries look for templates there.

    Raises:
        RedrafterError: Naming the file.
    """
    for path in sorted([*directory.iterdir(), *directory.glob("*/*")]):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if path.is_symlink():
                raise RedrafterError(
                    f"{path} is a link that leads nowhere: fetch the file."
                ) from error
            raise RedrafterError(f"{path} cannot be read: {error.strerror or error}.") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RedrafterError(f"{path} is a pipe or a device, not a file: remove it.")
        if path.suffix in TEXTS and path.is_file() and path.stat().st_size > LARGEST_TEXT:
            raise RedrafterError(
                f"{path} is larger than {LARGEST_TEXT >> 20} MiB, as no model's is: check the file."
            )
