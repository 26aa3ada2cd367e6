"""JSON that is safe to go on with, of a request or of a model: bounded, finite, valid text."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from .failures import ApiError

MAX_DEPTH = 64
TOO_DEEP = "The body is nested too deeply."
LARGEST_INTEGER = 2**63 - 1


def parse_body(raw: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        raw: The body, of bounded size.

    Raises:
        ApiError: 400 if it is no JSON object; if it is nested too deeply; if it holds a lone
            surrogate, a number that is not finite, or an integer beyond 64 bits.
    """
    try:
        text = raw.decode("utf-8-sig")  # Windows programs begin files with a mark
    except UnicodeDecodeError as error:
        raise _malformed("The body is not UTF-8.") from error
    value = parse_json(text)
    if not isinstance(value, dict):
        raise _malformed("The body has to be a JSON object.")
    return value


def parse_json(text: str) -> Any:
    """Read JSON.

    Args:
        text: Of bounded size.

    Raises:
        ApiError: 400 if it is no JSON, or none that :func:`check_json` takes.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _malformed(TOO_DEEP) from error
    except ValueError as error:  # of JSON, and Python's own for integers of thousands of digits
        reason = str(error).split(";")[0]
        raise _malformed(f"The body is not valid JSON: {reason}.") from error
    check_json(value)
    return value


def check_json(value: Any) -> None:
    """Look for what not everyone can read, or write again.

    Args:
        value: As ``json.loads`` makes it; walked without recursion.

    Raises:
        ApiError: 400 if it is nested too deeply, or with the name of the part that holds a lone
            surrogate, a number that is not finite, or an integer beyond 64 bits.
    """
    stack: list[tuple[Any, int, str]] = [(value, 1, "")]
    while stack:
        item, depth, place = stack.pop()
        if isinstance(item, str):
            _check_text(item, place)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise _malformed(_said_of(place, "number is too large."), place)
        elif isinstance(item, int):
            if not -LARGEST_INTEGER - 1 <= item <= LARGEST_INTEGER:
                raise _malformed(_said_of(place, "number is too large."), place)
        elif isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                raise _malformed(TOO_DEEP)
            stack.extend(_children(item, depth + 1, place))


def _malformed(message: str, path: str = "") -> ApiError:
    return ApiError(400, message, path or None, "invalid_json")


def _said_of(path: str, fault: str) -> str:
    """A sentence on the number or text at a path."""
    return f"{path}: the {fault}" if path else f"The {fault}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _children(item: Any, depth: int, path: str) -> list[tuple[Any, int, str]]:
    lead = f"{path}." if path else ""
    if isinstance(item, list):
        return [(child, depth, f"{lead}{index}") for index, child in enumerate(item)]
    for key in item:
        _check_text(key, path)
    return [(child, depth, f"{lead}{key}") for key, child in item.items()]


def _check_text(text: str, path: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = "text holds half of a surrogate pair, which is no character."
            message = _said_of(path, message)
            raise _malformed(message, path) from error
