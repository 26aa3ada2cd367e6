"""The programs there are, each of which Ctrl-C ends with code 130 while its modules are imported.

That takes tenths of a second, in which nothing else would heed Ctrl-C: Python would print where it
was, and end by the signal. So they are imported in here, by a module that imports next to nothing.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C
_PACKAGE = "mlx_redrafter"


def run(module: str) -> int:
    """Run the ``main`` of a module of the command lines; returns its exit code."""
    try:
        code: int = import_module(f"{_PACKAGE}.ui.{module}").main()
    except KeyboardInterrupt:  # while Python was still importing
        code = INTERRUPTED
    return code if code != INTERRUPTED else _interrupted()


def _interrupted() -> int:
    """The code of a program that was interrupted, made to be what Python ends with.

    Python notes an interruption that leaves an ``exec`` of text, of which dataclasses are made, and
    then ends by the signal though it was heeded; the next such ``exec`` takes the note back.
    """
    exec("")
    return INTERRUPTED


chat = partial(run, "chat.main")
server = partial(run, "cli.serve")
convert = partial(run, "cli.convert")
train = partial(run, "cli.train")
plan = partial(run, "cli.plan")
benchmark = partial(run, "cli.benchmark")
