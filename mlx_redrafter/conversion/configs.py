"""The config.json of what is converted: read, and its entries seen to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

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


def wrong_kind(values: Mapping[str, Any], declared: type) -> str | None:
    """The first entry of another kind than a class declares; None where all are as declared.

    Only for explanations: mlx-lm's declarations are not binding.

    Args:
        values: A configuration.
        declared: mlx-lm's dataclass of a model's arguments.
    """
    hints = get_type_hints(declared)
    for name, value in values.items():
        kinds = _plain_kinds(hints.get(name))
        if kinds and not isinstance(value, kinds):
            return f"{name} is {shown(value)}"
    return None


def _plain_kinds(hint: Any) -> tuple[type, ...]:
    """The kinds of values that a hint allows; none where it is not of plain kinds alone."""
    if get_origin(hint) in (Union, UnionType):
        each = [_plain_kinds(one) for one in get_args(hint)]
        return tuple(kind for kinds in each for kind in kinds) if all(each) else ()
    if hint is float:
        return (float, int)
    return (hint,) if hint in (int, bool, str, type(None)) else ()


@contextmanager
def naming_field(values: Mapping[str, Any]) -> Iterator[None]:
    """Name the entry of config.json that transformers, looking for a tokenizer, stumbles over.

    Raises:
        RedrafterError: If it names one.
    """
    try:
        yield
    except RedrafterError as error:
        found = re.search(r"[Vv]alidation error for field '(\w+)'", str(error))
        if found is None or found[1] not in values:
            raise
        raise RedrafterError(
            f"{found[1]} in the target's config.json is {shown(values[found[1]])}, which "
            f"transformers does not take: {RIGHT_ONE}."
        ) from error
