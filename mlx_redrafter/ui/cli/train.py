"""The command line of ``python -m mlx_redrafter.train``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from types import FrameType
from typing import Any

from ...errors import RedrafterError
from ...training.options import TrainingOptions, read_config
from ..parsing import OneSentenceParser

PROGRAM = "mlx_redrafter.train"
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    """One flag for each field of ``TrainingOptions``; those of mlx_lm.lora are known too."""
    parser = OneSentenceParser(
        prog=PROGRAM,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Train a drafter for a model from the model itself, on this machine.",
        epilog="Ctrl-C saves the run and ends with code 130; the same command with --resume goes "
        "on to the same result. docs/training.md has a worked example.",
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML file with these settings; flags override it"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in fields(TrainingOptions):
        name = option.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        _add_flag(groups[name], option)
    return parser


def _add_flag(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    hints = option.metadata
    names = [f"--{name.replace('_', '-')}" for name in (option.name, *hints.get("aliases", ()))]
    text = hints["help"].replace("%", "%%")
    kind = str(option.type).removesuffix(" | None")
    if kind == "bool":
        action = argparse.BooleanOptionalAction if option.default else "store_true"
        group.add_argument(*names, dest=option.name, action=action, help=text)
        return
    if option.default not in (None, "") and "default" not in text:
        text += f" (default {option.default})"
    readers: dict[str, Callable[[str], Any]] = {"str": str, "int": _whole, "float": _number}
    group.add_argument(
        *names,
        dest=option.name,
        type=readers[kind],
        choices=hints.get("choices"),
        metavar=hints.get("metavar") or {"int": "N", "float": "X"}.get(kind),
        help=text,
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not '{text}'") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, not '{text}'") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, showing progress and what came out.

    Args:
        arguments: The command line without the program's name; by default the process's own.

    Returns:
        0; 2 where something has to be changed; 130 after Ctrl-C.
    """
    values = vars(build_parser().parse_args(arguments))
    config = values.pop("config", None)
    from .train_screen import TrainingScreen, show_report

    screen, again = TrainingScreen(), "with --resume"
    try:
        given = _merged(read_config(config) if config is not None else {}, values)
        options = TrainingOptions.from_values(given)  # before anything slow is imported
        again += " instead of --overwrite" if options.overwrite else ""
        from ...training.run import train_drafter

        with screen, _polite_interrupts(screen):
            report = train_drafter(**options.to_dict(), callback=screen)
    except RedrafterError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{PROGRAM}: interrupted{screen.reached()}; the same command {again} goes on.\n"
        )
        return INTERRUPTED
    show_report(report)
    return 0


def _merged(config: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of which flags take the place, of their opposites too."""
    for one, other in (("steps", "epochs"), ("resume", "overwrite")):
        for here, there in ((one, other), (other, one)):
            if here in flags and there not in flags:
                config = {name: value for name, value in config.items() if name != there}
    return {**config, **flags}


@contextmanager
def _polite_interrupts(screen: Any) -> Iterator[None]:
    """Let the first Ctrl-C wait until the step under way is done; the second does not."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets Ctrl-C
        return

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if screen.stopping:
            raise KeyboardInterrupt
        screen.stop()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
