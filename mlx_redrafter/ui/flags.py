"""Flags made of dataclass fields: a field's metadata is its flag, its help and how it is read.

``ranges.option`` makes fields of the same kind, so the settings of training and of conversions
become flags in the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from ..errors import RedrafterError
from ..ranges import OptionRange
from .parsing import json_object, number, whole_number

Options = TypeVar("Options")
_METAVARS = {"int": "N", "float": "X", "str": "TEXT"}
_READERS: dict[str, Callable[[str], Any]] = {
    "int": whole_number, "float": number, "str": str, "dict[str, Any]": json_object,
}  # fmt: skip


def flag(default: Any, group: str, text: str, **hints: Any) -> Any:
    """A field that becomes a flag.

    Args:
        default: Its default; a positional argument has to be given all the same.
        group: Heading under which --help lists it.
        text: Its help; the default is added where the text does not speak of one.
        **hints: ``reader`` (text to value), ``metavar``, ``choices``, ``aliases`` (further names
            without dashes; one letter makes a short flag), ``several`` (it takes one value or
            more), ``repeated`` (it may be given more than once), ``positional`` (and ``optional``),
            ``negative`` (the flag that switches it off, where that is the only one), ``own``
            (processes of a run may differ in it: a place on each machine, or rank 0's alone).
    """
    if isinstance(default, list | tuple):
        several = list(default)
        return field(
            default_factory=lambda: list(several), metadata={"group": group, "help": text, **hints}
        )
    return field(default=default, metadata={"group": group, "help": text, **hints})


def flags_of(config: type[Any], group: str, **hints: Any) -> Any:
    """A field that holds another dataclass, each of whose numbers becomes a flag.

    Args:
        config: Its fields' metadata hold their ``range`` (:class:`OptionRange`).
        group: Heading under which --help lists them.
        **hints: ``aliases`` (further names, by field), ``without`` (fields that are no flags).
    """
    return field(default_factory=config, metadata={"group": group, "config": config, **hints})


def add_flags(parser: argparse.ArgumentParser, *options: type[Any], given: bool = False) -> None:
    """Add a flag for each field of dataclasses that has metadata, under its groups' headings.

    Args:
        parser: Gets them.
        *options: Dataclasses whose fields are made by :func:`flag`, or like it.
        given: Whether only flags that were given are to appear among the parsed values.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    # What is inherited comes first in a dataclass, but which model is the first question.
    everything = [one for group in options for one in _flags(group)]
    for one in sorted(everything, key=lambda one: one.name != "model"):
        name = one.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_flag(groups[name], one, given)


def options_of(options: type[Options], values: argparse.Namespace) -> Options:
    """The dataclass from parsed flags."""
    found = vars(values)
    given: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        if "config" in one.metadata:
            inner = {flag.name: found[flag.name] for flag in _config_flags(one)}
            given[one.name] = one.metadata["config"](**inner)
        elif "help" in one.metadata and one.name in found:
            given[one.name] = found[one.name]
    return options(**given)


def compared(*options: Any) -> dict[str, Any]:
    """What all processes of a run have to be started with alike, by the flags' names.

    Args:
        *options: Dataclasses whose fields are made by :func:`flag`, or like it.
    """
    values: dict[str, Any] = {}
    for group in options:
        for one in fields(group):
            value = getattr(group, one.name)
            if "config" in one.metadata:
                own = _config_flags(one)
                values |= {_long_name(inner): getattr(value, inner.name) for inner in own}
            elif "help" in one.metadata and not one.metadata.get("own"):
                values[_long_name(one)] = value
    return values


def _long_name(one: Field[Any]) -> str:
    return f"--{one.metadata.get('negative', one.name).replace('_', '-')}"


def _flags(options: type[Any]) -> Iterable[Field[Any]]:
    """The fields that are flags, those of held dataclasses among them."""
    for one in fields(options):
        if "help" in one.metadata:
            yield one
        elif "config" in one.metadata:
            yield from _config_flags(one)


def _config_flags(holder: Field[Any]) -> Iterable[Field[Any]]:
    hints = holder.metadata
    for one in fields(hints["config"]):
        if "range" not in one.metadata or one.name in hints.get("without", ()):
            continue
        limits: OptionRange = one.metadata["range"]
        made: Field[Any] = flag(
            one.default, hints["group"], limits.help, reader=_reader(one.name, limits),
            aliases=hints.get("aliases", {}).get(one.name, ()),
            metavar="N" if limits.kind is int else "X",
        )  # fmt: skip
        made.name, made.type = one.name, one.type
        yield made


def read_option(config: type[Any], name: str, text: str) -> Any:
    """Read an option of a dataclass like :class:`SamplingConfig` from text.

    Raises:
        RedrafterError: If it is out of the option's range.
    """
    limits: OptionRange = next(f.metadata["range"] for f in fields(config) if f.name == name)
    try:
        return limits.checked(limits.kind(text), name)
    except ValueError:  # RedrafterError is one
        raise RedrafterError(f"{name} needs {limits}, not '{text}'.") from None


def _reader(name: str, limits: OptionRange) -> Callable[[str], Any]:
    """Text to a number in its range; what does not fit is told as the range tells it."""

    def read(text: str) -> Any:
        try:
            return limits.checked(limits.kind(text), name)
        except ValueError:  # RedrafterError is one
            raise argparse.ArgumentTypeError(f"{limits} is needed, not '{text}'") from None

    return read


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default


def _add_flag(group: argparse._ArgumentGroup, one: Field[Any], given: bool) -> None:
    hints, default = one.metadata, _default(one)
    kind = str(one.type).removesuffix(" | None")
    text = _help(hints["help"], default)
    unless_given = argparse.SUPPRESS if given else default
    if kind == "bool":
        _add_switch(group, one, text, unless_given)
        return
    more: dict[str, Any] = {
        "choices": hints.get("choices"),
        "help": text,
        "default": unless_given,
    }
    if hints.get("several"):
        more["nargs"] = "+"
    elif hints.get("repeated"):
        more["action"] = "append"
    more["type"] = hints.get("reader") or _READERS.get(kind, str)
    if not hints.get("choices") or hints.get("metavar"):
        more["metavar"] = hints.get("metavar") or _METAVARS.get(kind, "VALUE")
    if hints.get("positional"):
        if hints.get("optional"):
            more["nargs"] = "?"
        group.add_argument(one.name, **more)
    else:
        group.add_argument(*_names(one), dest=one.name, **more)


def _add_switch(
    group: argparse._ArgumentGroup, one: Field[Any], text: str, unless_given: Any
) -> None:
    more: dict[str, Any] = {"dest": one.name, "default": unless_given, "help": text}
    if "negative" in one.metadata:
        group.add_argument(f"--{one.metadata['negative']}", action="store_false", **more)
        return
    action: Any = argparse.BooleanOptionalAction if _default(one) else "store_true"
    group.add_argument(*_names(one), action=action, **more)


def _names(one: Field[Any]) -> list[str]:
    names = (one.name, *one.metadata.get("aliases", ()))
    return [f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}" for name in names]


def _help(text: str, default: Any) -> str:
    if default not in (None, "", False, True) and "default" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text += f" (default {shown})" if not isinstance(default, list) or default else ""
    return text.replace("%", "%%")
