"""Which numbers an option may be, for checks, flags and documentation alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .errors import RedrafterError


@dataclass(frozen=True)
class OptionRange:
    """Which numbers an option may be, and what it means.

    Attributes:
        help: What it does.
        kind: ``float`` or ``int``.
        minimum: The least number.
        maximum: The largest number; infinity itself is never one.
        above: Whether the minimum itself is excluded.
        or_zero: Whether 0 is allowed although the minimum is larger.
    """

    help: str
    kind: type = float
    minimum: float = -math.inf
    maximum: float = math.inf
    above: bool = False
    or_zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; one beyond a float's is in none."""
        if abs(value) > sys.float_info.max:
            return False
        if self.or_zero and value == 0:
            return True
        low = value > self.minimum if self.above else value >= self.minimum
        return low and value <= self.maximum

    def __str__(self) -> str:
        number = "a whole number" if self.kind is int else "a finite number"
        least = "above" if self.above else "from"
        low = "" if math.isinf(self.minimum) else f" {least} {self.minimum:g}"
        highest = self.maximum if self.kind is int else f"{self.maximum:.15g}"
        high = "" if math.isinf(self.maximum) else f" to {highest}"
        return f"{'0, or ' if self.or_zero else ''}{number}{low}{high}"

    def checked(self, value: Any, name: str) -> Any:
        """The value as a number of this kind in this range; None stays None.

        Raises:
            RedrafterError: Naming the option and what it has to be.
        """
        if value is None:
            return None
        if hasattr(value, "item") and getattr(value, "size", 0) == 1:
            value = value.item()  # an array's or numpy's number
        wanted = Integral if self.kind is int else Real
        number = isinstance(value, wanted) and not isinstance(value, bool)
        if not number or not self.holds(value):
            raise RedrafterError(f"{name} is {shown(value)}, but has to be {self}.")
        return self.kind(value)


def shown(value: Any) -> str:
    """A value of any kind in a sentence: on one line, and no more than its beginning."""
    return f"{' '.join(repr(value).split()):.100}"


def option(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field with its group, its help text and further hints for the command line.

    Args:
        default: Its default.
        group: Heading under which --help and the documentation list it.
        text: One line of help.
        **more: As ``ui.flags.flag`` has them.
    """
    return field(default=default, metadata={"group": group, "help": text, **more})


def of_kind(value: Any, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """A value of a kind.

    Raises:
        RedrafterError: Naming the option and what it has to be.
    """
    if not isinstance(value, kind):
        raise RedrafterError(f"{name} has to be {wanted}, and is {shown(value)}.")
    return value


def of_kind_or_none(value: Any, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """A value of a kind, or None.

    Raises:
        RedrafterError: Naming the option and what it has to be.
    """
    return None if value is None else of_kind(value, name, kind, wanted)


def kind_or_none(value: Any, name: str, kind: type) -> Any:
    """A value of a class, or None.

    Raises:
        RedrafterError: Naming the option and the class.
    """
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return of_kind_or_none(value, name, kind, f"{article} {kind.__name__}")


def check_flags(**flags: Any) -> None:
    """See that each option that is on or off says so: "no" would be taken for on.

    Raises:
        RedrafterError: Naming the option.
    """
    for name, given in flags.items():
        of_kind(given, name, bool, "True or False")


def check_texts(**texts: Any) -> None:
    """See that each option is text, or None.

    Raises:
        RedrafterError: Naming the option.
    """
    for name, given in texts.items():
        of_kind_or_none(given, name, str, "text")


def is_several(given: Any) -> bool:
    """Whether something can be gone through; an array without dimensions only seems so."""
    return isinstance(given, Iterable) and getattr(given, "ndim", 1) != 0


def several(given: Any, name: str, wanted: str) -> list[Any]:
    """The entries of whatever can be gone through.

    Raises:
        RedrafterError: Naming the option and what it has to be.
    """
    if not is_several(given):
        raise RedrafterError(f"{name} has to be {wanted}, and is {shown(given)}.")
    return list(given)


def function_of(given: Any, name: str, wanted: str) -> Any:
    """A function of the caller's, or None.

    Raises:
        RedrafterError: Naming the option and what it has to be.
    """
    if given is not None and not callable(given):
        raise RedrafterError(f"{name} has to be {wanted}.")
    return given


def functions_of(given: Any, name: str, wanted: str) -> tuple[Any, ...]:
    """Functions of the caller's: several, one, or none.

    Raises:
        RedrafterError: Naming the option and what it has to be.
    """
    given = () if given is None else given
    functions = tuple(given) if is_several(given) and not callable(given) else (given,)
    if not all(callable(one) for one in functions):
        raise RedrafterError(f"{name} has to be {wanted}.")
    return functions


def token_ids(given: Any, name: str) -> tuple[int, ...]:
    """Token ids, of any vocabulary.

    Raises:
        RedrafterError: Naming the option.
    """
    given = given.tolist() if hasattr(given, "tolist") else given  # an array
    given = () if given is None else given
    # Bytes and mappings can be gone through, but not for token ids.
    listed = isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | Mapping)
    ids = tuple(given) if listed else (None,)
    if not are_counts(ids):
        raise RedrafterError(f"{name} has to be a list of token ids.")
    return tuple(map(int, ids))


def prompt_ids(given: Any, name: str) -> list[int]:
    """The ids of a prompt that is token ids: a sequence, or an array of one dimension.

    Raises:
        RedrafterError: If it is anything else, naming the prompt.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    # Bytes are a sequence of numbers, but not of token ids.
    readable = isinstance(listed, Sequence) and not isinstance(listed, str | bytes | bytearray)
    if not readable or not are_counts(listed):
        raise RedrafterError(
            f"{name} has to be a list of token ids here; generate and batch_generate take text and "
            "chat messages, too."
        )
    return [int(token) for token in listed]


def is_count(value: object) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_length(length: Any) -> int:
    """A length to go back to, as Python's own whole number: layers would take half a token, too.

    Raises:
        RedrafterError: If it is none.
    """
    if not is_count(length) or length < 0:
        raise RedrafterError(
            f"The length to rewind to has to be a whole number of tokens, and is {shown(length)}."
        )
    return int(length)


def are_counts(values: Iterable[object]) -> bool:
    """Whether all values are such: told by their types, of which there are few in a long prompt."""
    kinds = set(map(type, values))
    return bool not in kinds and all(issubclass(kind, Integral) for kind in kinds)


def bias_pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Token ids with finite numbers, ascending, of a mapping or of pairs.

    Raises:
        RedrafterError: If it holds anything else.
    """
    try:
        given = {} if bias is None else bias
        entries = list(given.items() if isinstance(given, Mapping) else given)
        pairs = {_token_id(token): _number(value) for token, value in entries}
    except (TypeError, ValueError, OverflowError):
        pairs = {-1: math.nan}
    if not all(token >= 0 and math.isfinite(value) for token, value in pairs.items()):
        raise RedrafterError("logit_bias has to map token ids to finite numbers.")
    return tuple(sorted(pairs.items()))


def _token_id(given: Any) -> int:
    """A token id, or one as text (JSON has no other keys); -1 for a fraction or a truth value."""
    whole = isinstance(given, str) or (int(given) == given and not isinstance(given, bool))
    return int(given) if whole else -1


def _number(given: Any) -> float:
    """What is added to a logit; not a number for text and truth values."""
    return math.nan if isinstance(given, str | bool) else float(given)
