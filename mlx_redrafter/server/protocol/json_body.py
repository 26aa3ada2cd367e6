"""A request's body as JSON that is safe to go on with: bounded, finite, valid text."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from .failures import ApiError

MAX_DEPTH = 64
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
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _malformed("The body is not UTF-8.") from error
    except RecursionError as error:
        raise _malformed("The body is nested too deeply.") from error
    except ValueError as error:  # of JSON, and Python's own for integers of thousands of digits
        raise _malformed(f"The body is not valid JSON: {str(error).split(';')[0]}.") from error
    if not isinstance(value, dict):
        raise _malformed("The body has to be a JSON object.")
    _check(value)
    return value


def _malformed(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _check(value: Any) -> None:
    """Walk the whole value without recursion."""
    stack: list[tuple[Any, int, str]] = [(value, 1, "")]
    while stack:
        item, depth, path = stack.pop()
        if isinstance(item, str):
            _check_text(item, path)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ApiError(400, "A number is too large.", path or None, "invalid_json")
        elif isinstance(item, int):
            if not -LARGEST_INTEGER - 1 <= item <= LARGEST_INTEGER:
                raise ApiError(400, "A number is too large.", path or None, "invalid_json")
        elif isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                raise _malformed("The body is nested too deeply.")
            stack.extend(_children(item, depth + 1, path))


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
            message = "The text holds half of a surrogate pair, which is no character."
            raise ApiError(400, message, path or None, "invalid_json") from error
