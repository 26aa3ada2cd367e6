"""Reading command lines without importing anything slow: a parser and readers of values."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import RedrafterError
from ..system.files import local_path
from ..system.launched import launched_rank
from ..system.visible import visible_line
from .entry import USER_ERROR, last_name

# The engine checks these as well; told here, a slip costs no loading time.
LARGEST_SEED = 2**63 - 1
WIDEST_BEAM = 1024
LONGEST_BEAM = 64


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, without the page of usage above it."""

    def __init__(self, prog: str, **more: Any):
        more.setdefault("allow_abbrev", False)
        super().__init__(prog=prog, **more)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print --help or a version, once for all processes of a run; argparse itself says nothing
        where that fails."""
        if launched_rank():
            return
        stream = file or sys.stdout
        stream.write(message)
        stream.flush()

    def error(self, message: str) -> NoReturn:
        """Print the sentence, once for all processes of a run, and leave with code 2."""
        name = last_name(self.prog)
        sentence = visible_line(f"{name}: {message} (--help lists the flags)")
        if not launched_rank():  # all were started by the same command
            sys.stderr.write(sentence + "\n")
        sys.exit(USER_ERROR)


def count(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from ``minimum`` to ``maximum``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"a whole number of at least {minimum} is needed, not '{text}'"
            )
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"at most {maximum} is possible, not '{text}'")
        return value

    return read


def whole_number(text: str) -> int:
    """Read any whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not '{text}'") from None


def number(text: str) -> float:
    """Read any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, not '{text}'") from None


def temperature(text: str) -> float:
    """Read a temperature: a finite number, zero or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of at least 0 is needed, not '{text}'")
    return value


def share(text: str) -> float:
    """Read a share of probability: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, not '{text}'")
    return value


def place(text: str) -> Path:
    """Read the path of a file or directory."""
    try:
        return local_path(text)
    except RedrafterError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object, such as '{"enable_thinking": false}'."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"a JSON object such as '{{\"name\": true}}' is needed, not '{text}'"
        )
    return value


def template_arguments(text: str) -> dict[str, Any]:
    """Read a JSON object of arguments of the chat template."""
    from ..text.template_arguments import PROGRAMS

    value = json_object(text)
    for name in sorted(PROGRAMS & value.keys()):
        raise argparse.ArgumentTypeError(
            f"'{name}' is set by the program itself, so leave it out of '{text}'"
        )
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
