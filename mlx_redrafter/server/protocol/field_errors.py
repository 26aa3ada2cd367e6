"""Which of the many things pydantic says of a wrong request to tell, and in which words.

Where a field may be one of several types, pydantic complains of each of them, and names the types
in between the fields: a picture among the parts of a message is first of all no string. What is
told is the complaint that goes deepest into the body as it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .failures import ApiError

LONGEST_SHOWN = 100
MOST = 1000  # complaints that are compared
# Complaints of which one is named. Pydantic tells all or none, and while it writes them down
# nothing else in the process goes on: a million, of a body of wrong numbers, take six seconds.
MOST_TOLD = 50_000
Path = tuple[int | str, ...]
_SHAPE = "Input should be "
_OBJECTS = frozenset({"dict_type", "model_type", "model_attributes_type"})
# Of several types that a field names one of: it names none, or another.
_UNTYPED = "union_tag_not_found"
_OTHER_TYPE = "union_tag_invalid"


class _Fault(NamedTuple):
    """One complaint.

    Attributes:
        path: The field, as it stands in the body.
        details: Pydantic's.
        shape: Whether all it says is that the value is of another type than one of those allowed.
    """

    path: Path
    details: ErrorDetails
    shape: bool


def refusal_of(error: ValidationError, body: dict[str, Any]) -> ApiError:
    """What a client is told of a body that is wrong.

    Args:
        error: Pydantic's.
        body: As it came.
    """
    if error.error_count() > MOST_TOLD:
        message = f"The body has more than {MOST_TOLD} faults: send what /openapi.json describes."
        return ApiError(400, message, code="invalid_value")
    every = error.errors(include_url=False, include_input=False)[:MOST]
    # Other fields' faults are for the next time.
    field = every[0]["loc"][:1]
    faults = [_fault(details, body) for details in every if details["loc"][:1] == field]
    worst = max(faults, key=lambda fault: (not fault.shape, len(fault.path)))
    path, kind = worst.path, worst.details["type"]
    if kind in (_OTHER_TYPE, _UNTYPED):
        path = (*path, worst.details["ctx"]["discriminator"].strip("'"))
    param = ".".join(map(str, path))
    if worst.shape:
        same = (fault.details for fault in faults if fault.path == path and fault.shape)
        message = f"{param}: input should be {_alternatives(same)}."
    else:
        message = _sentence(worst.details, param, _value(body, path))
    code = "unknown_parameter" if kind == "extra_forbidden" else "invalid_value"
    return ApiError(400, message, param or None, code)


def _fault(details: ErrorDetails, body: dict[str, Any]) -> _Fault:
    kind, location = details["type"], details["loc"]
    path = _resolved(location, body, missing=kind == "missing") or ()
    shape = details["msg"].startswith(_SHAPE) and kind.endswith("_type")
    if kind == "literal_error":
        # At a field of its own it is a wrong word; as one of a field's types, another type.
        shape = path[-1:] != location[-1:]
    return _Fault(path, details, shape)


def _resolved(location: Path, value: Any, *, missing: bool) -> Path | None:
    """A location without the names of pydantic's types; None if it does not lead anywhere.

    Args:
        location: Fields and indices, and types in between.
        value: What it starts from.
        missing: Whether it ends at a field that is not there.
    """
    if not location:
        return ()
    part, rest = location[0], location[1:]
    ways: list[Path | None] = []
    there = _has(value, part)
    if missing and not rest:
        return (part,) if isinstance(value, dict) and not there else None
    if there:
        way = _resolved(rest, value[part], missing=missing)
        ways.append(None if way is None else (part, *way))
    if isinstance(part, str):
        # A type may be called like a field that is there: which of them is meant shows later on.
        ways.append(_resolved(rest, value, missing=missing))
    return max((way for way in ways if way is not None), key=len, default=None)


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _value(body: Any, path: Path) -> Any:
    """What stands at a path; None where nothing does."""
    try:
        return reduce(getitem, path, body)
    except (KeyError, IndexError, TypeError):
        return None


def _alternatives(complaints: Iterable[ErrorDetails]) -> str:
    """The types that a field may have, each once."""
    tails = (
        "an object" if one["type"] in _OBJECTS else one["msg"].removeprefix(_SHAPE)
        for one in complaints
    )
    return ", or ".join(dict.fromkeys(tails))


def _sentence(details: ErrorDetails, param: str, value: Any) -> str:
    kind, message, context = details["type"], details["msg"], details.get("ctx", {})
    if kind in ("extra_forbidden", "none_required"):
        return f"{param} is not supported here: leave it out."
    if kind in ("missing", _UNTYPED):
        return f"{param} is missing."
    if kind == "string_pattern_mismatch":  # of the one pattern there is: names in logit_bias
        return f"{param}: the name has to be the id of a token, in digits."
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == _OTHER_TYPE:
        return _unsupported(param, value, context["expected_tags"])
    if kind == "literal_error" and param.endswith(".type"):
        return _unsupported(param, value, context["expected"].replace(" or ", ", "))
    if kind == "literal_error" and " or " not in context["expected"]:
        # The one value that is taken does nothing, and reads as Python's: False, ''.
        return f"{param} is not supported here: leave it out."
    message = message.replace(" after validation", "")
    return f"{param}: {message[0].lower()}{message[1:]}." if param else f"{message}."


def _unsupported(param: str, value: Any, known: str) -> str:
    before, comma, last = known.rpartition(", ")
    listed = f"{before} and {last} are" if comma else f"{last} is"
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
    return f"{param}: {shown} is not supported here, only {listed}."
