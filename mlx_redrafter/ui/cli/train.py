"""The command line of ``python -m mlx_redrafter.train``."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...training.options import TrainingOptions, read_config
from ..ending import ENDS, in_main_thread, signals
from ..entry import SUCCESS, as_typed, command_line, short_name, told_once
from ..flags import add_flags
from ..opening import prepare
from ..output import complain
from ..parsing import OneSentenceParser
from ..together import refuse_ranks

if TYPE_CHECKING:
    from .train_screen import TrainingScreen

NAME = "python -m mlx_redrafter.train"
# What ends a run, which is saved first; SIGHUP tells that the terminal is gone. Windows has none.
SIGNALS = ("SIGINT", *ENDS)


def build_parser() -> argparse.ArgumentParser:
    """One flag for each field of ``TrainingOptions``; those of mlx_lm.lora are known too."""
    parser = OneSentenceParser(
        as_typed(NAME),
        description="Train a drafter for a model from the model itself, on this machine.",
        epilog="Ctrl-C saves the run and ends with code 130, and so do SIGTERM (143) and a "
        "terminal that is closed (129); the same command with --resume goes on to the same "
        "result. docs/training.md has a worked example.",
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=argparse.SUPPRESS,
        help="YAML file with these settings; flags override it",
    )  # fmt: skip
    add_flags(parser, TrainingOptions, given=True)
    return parser


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Train, showing progress and what came out.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0.
    """
    with told_once():
        options = _read_options(arguments)  # before anything slow is imported
    from .train_screen import TrainingScreen, show_report

    screen = TrainingScreen()
    from ...training.run import train_drafter
    from ..quiet import quiet_libraries

    quiet_libraries()
    refuse_ranks("Training")
    prepare(options.model, options.revision)
    try:
        with screen, _saving_first(screen):
            report = train_drafter(**options.to_dict(), callback=screen)
    except (KeyboardInterrupt, SystemExit) as end:
        again = "with --resume" + (" instead of --overwrite" if options.overwrite else "")
        reached = f"interrupted{screen.reached()}; the same command {again} goes on."
        if isinstance(end, KeyboardInterrupt):
            raise KeyboardInterrupt(reached) from None
        complain(f"{short_name(NAME)}: {reached}")
        raise
    show_report(report, options)
    return SUCCESS


def _read_options(arguments: Sequence[str]) -> TrainingOptions:
    """What flags, and the file that one of them names, ask for."""
    values = vars(build_parser().parse_args(arguments))
    config = values.pop("config", None)
    given = _merged(read_config(config) if config is not None else {}, values)
    return TrainingOptions.from_values(given)


def _merged(config: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of which flags take the place, of their opposites too."""
    for one, other in (("steps", "epochs"), ("resume", "overwrite")):
        for here, there in ((one, other), (other, one)):
            if here in flags and there not in flags:
                config = {name: value for name, value in config.items() if name != there}
    if flags.get("loss", "mix") != "mix":
        config = {name: value for name, value in config.items() if name != "hard_weight"}
    return {**config, **flags}


@contextmanager
def _saving_first(screen: TrainingScreen) -> Iterator[None]:
    """Let Ctrl-C, and what else ends a program, wait until the step under way is done and saved.

    A second one does not wait.
    """
    if not in_main_thread():
        yield
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # As Python and shells report it.
        end = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        if screen.ending is not None:
            raise end
        screen.stop(end)

    # Under nohup the terminal may go.
    heard = [
        n for n in signals(SIGNALS) if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
