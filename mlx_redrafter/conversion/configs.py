"""The config.json of what is converted: read, and its entries seen to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..text.boundary import read_json

RIGHT_ONE = "use the config.json that belongs to the weights"
SAVED_ONE = "put the one there that save_pretrained wrote beside the weights"


def read_config(path: Path, owner: str, remedy: str = SAVED_ONE) -> dict[str, Any]:
    """Read a JSON object, see :func:`read_json`.

    Args:
        path: The file.
        owner: What would have one.
        remedy: What to do where it cannot be read.

    Raises:
        RedrafterError: Saying what is wrong, and what to do.
    """
    try:
        return read_json(path, owner)
    except RedrafterError as error:
        raise RedrafterError(f"{str(error).rstrip('.')}; {remedy}.") from error


@contextmanager
def as_given(staged: Path, given: Path) -> Iterator[None]:
    """Name what a person gave where an error names a directory that is gone when it is read.

    Args:
        staged: The directory that is worked on.
        given: What it was made of.

    Raises:
        RedrafterError: The one from inside, in other words.
    """
    try:
        yield
    except RedrafterError as error:
        text = str(error)
        for place in (staged.resolve(), staged):  # a temporary directory is often behind a link
            text = text.replace(str(place), str(given))
        if text == str(error):
            raise
        raise RedrafterError(text) from error


def check_own_code(values: Mapping[str, Any], path: Path, trusted: bool) -> None:
    """Refuse a model that is built by a Python file of its own, unless that may run.

    Raises:
        RedrafterError: Naming the file and the flag.
    """
    if values.get("model_file") is not None and not trusted:
        raise RedrafterError(
            f"{path} names a Python file of its own, {shown(values['model_file'])}, that builds "
            "the model, which is not run unless you trust it: pass --trust-remote-code."
        )


def check_objects(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what is looked into as an object, but is none.

    Raises:
        RedrafterError: Naming the entry.
    """
    text = values.get("text_config")
    if text is not None and not isinstance(text, Mapping):
        raise RedrafterError(
            f"text_config in {path} is {shown(text)}, but has to be an object: {RIGHT_ONE}."
        )


def shown(value: Any) -> str:
    """A value as its file has it, the beginning of a long one."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
