"""JSON schemas as users write them: what can be followed of them, and where what cannot stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from ..errors import RedrafterError
from ..ranges import of_kind

Schema = dict[str, Any]

MOST_CHARACTERS = 500_000
# llguidance compares the patterns of an object with each other: 100 take 0.1 s, 400 take 10.
MOST_PATTERNS = 100
# It looks for a text of all that allOf joins: twice the time for each further pattern.
MOST_JOINED = 12
MOST_REFERENCES = 200

# Where schemas stand within schemas: as a value, in a list, in a mapping by names.
_VALUES = (
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if",
    "then", "else", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def checked_schema(schema: Any, name: str = "json_schema") -> str:
    """A JSON schema as JSON; whether it can be followed, its grammar says.

    Args:
        schema: A mapping; an empty one is any JSON value.
        name: What it is called in errors.

    Raises:
        RedrafterError: If it is none, or takes too long to prepare.
    """
    of_kind(schema, name, Mapping, "a JSON schema as a mapping, such as {'type': 'object'}")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
        own = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RedrafterError(f"{name} cannot be written as JSON ({error!s:.200}).") from error
    if len(text) > MOST_CHARACTERS:
        raise RedrafterError(
            f"{name} has {len(text)} characters, but {MOST_CHARACTERS} are the most: make it "
            "smaller."
        )
    for place, part in subschemas(own):
        _check_size(part, own, f"{name}{place}")
        if "x-guidance" in part:
            raise RedrafterError(f"{name}{place} has settings in x-guidance: leave them out.")
    return text


def subschemas(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """A schema and those within it, each with its place, such as ".properties.name"."""
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        place, part = left.pop()
        if not isinstance(part, dict):
            continue  # true, false, or what is none
        yield place, part
        left += reversed(list(_children(place, part)))


def _children(place: str, part: Schema) -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if key in _VALUES:
            yield f"{place}.{key}", value
        if key in _LISTS and isinstance(value, list):
            yield from ((f"{place}.{key}.{n}", one) for n, one in enumerate(value))
        if key in _MAPPINGS and isinstance(value, dict):
            yield from ((f"{place}.{key}.{one}", value[one]) for one in value)


def _check_size(part: Schema, root: Schema, name: str) -> None:
    """Refuse what llguidance would think about for minutes, and nobody could stop."""
    patterns = part.get("patternProperties")
    if isinstance(patterns, dict) and len(patterns) > MOST_PATTERNS:
        raise RedrafterError(
            f"{name}.patternProperties has {len(patterns)} patterns, but {MOST_PATTERNS} are the "
            "most: make one of several."
        )
    if ("allOf" in part or "$ref" in part) and _joins_too_much(part, root):
        raise RedrafterError(
            f"{name} joins more than {MOST_JOINED} patterns or formats, or {MOST_REFERENCES} "
            "schemas, by allOf or $ref: make one of several."
        )


def _joins_too_much(part: Schema, root: Schema) -> bool:
    left: list[Any] = [part]
    seen: set[int] = set()
    patterns = 0
    while left:
        one = left.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        patterns += ("pattern" in one) + ("format" in one)
        if patterns > MOST_JOINED or len(seen) > MOST_REFERENCES:
            return True
        joined = one.get("allOf")
        left += joined if isinstance(joined, list) else []
        left.append(_target(one.get("$ref"), root))
    return False


def _target(reference: Any, root: Schema) -> Any:
    """What a reference within a schema refers to; None where it is none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            place = place[int(step)] if step.isdigit() and int(step) < len(place) else None
        else:
            place = place.get(step) if isinstance(place, dict) else None
    return place


def refusal(reason: str, schema: str, name: str) -> RedrafterError:
    """Why a schema cannot be followed, with its place where that is known.

    Args:
        reason: llguidance's, which names options of its own and no place.
        schema: As JSON.
        name: What it is called.
    """
    reason = " ".join(reason.split()).rstrip(".")
    parts = list(subschemas(json.loads(schema)))

    def place(fits: Callable[[Schema], bool]) -> str:
        return next((f"{name}{at}" for at, part in parts if fits(part)), name)

    keys = re.match(r"Unimplemented keys: (\[.*\])", reason)
    if reason.startswith("oneOf"):
        at = place(lambda part: "oneOf" in part)
        return RedrafterError(f"{at}.oneOf cannot be followed where its parts overlap: use anyOf.")
    if keys:
        names = json.loads(keys[1])
        at = place(lambda part: any(key in part for key in names))
        said = " and ".join(names)
        return RedrafterError(f"{at} cannot be followed: leave out {said}, it cannot be enforced.")
    if wrong := re.match(r"Invalid type: (.*)", reason):
        at = place(lambda part: wrong[1] in _listed(part.get("type")))
        return RedrafterError(f"{at} cannot be followed: {wrong[1]} is no type of JSON's.")
    if reason.startswith("Unsatisfiable schema"):
        return RedrafterError(f"{name} cannot be satisfied{reason[len('Unsatisfiable schema') :]}.")
    return RedrafterError(f"{name} cannot be followed: {reason:.300}.")


def _listed(kind: Any) -> list[Any]:
    return kind if isinstance(kind, list) else [kind]
