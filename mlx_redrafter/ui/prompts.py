"""Prompts on command lines: text as it was typed, or - for what comes on stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import RedrafterError, SharedError
from ..system.visible import whole_characters

STDIN = "-"


def given_prompt(given: str) -> str:
    """The text of a ``--prompt``, read from stdin where it is ``STDIN``.

    Raises:
        RedrafterError: If stdin holds none, or is not known to end.
    """
    if given != STDIN:
        return whole_characters(given)
    _refuse_several()
    text = whole_characters(sys.stdin.read()).strip()
    if not text:
        raise RedrafterError("--prompt - reads the text from stdin, but there was none.")
    return text


def given_prompts(given: Sequence[str]) -> list[str]:
    """The texts of a ``--prompt`` that may be repeated.

    Raises:
        RedrafterError: As :func:`given_prompt`, or if stdin is to give two.
    """
    if list(given).count(STDIN) > 1:
        raise RedrafterError("--prompt - is given twice, but stdin is read once: leave one out.")
    return [given_prompt(one) for one in given]


def _refuse_several() -> None:
    """Refuse to read all of stdin where mlx.launch passes it on, but never its end.

    Raises:
        RedrafterError: If it started this process.
    """
    from ..system.rank_watch import current_ranks

    if current_ranks() is not None:
        raise SharedError(
            "--prompt - would wait for ever, since mlx.launch never says that stdin has ended: "
            "pass the question itself."
        )
