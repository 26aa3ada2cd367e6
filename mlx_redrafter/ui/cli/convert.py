"""The command line of convert.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ...conversion import convert
from ...conversion.options import Options
from ...system.launched import launched_rank
from ..ending import ended_in_order
from ..entry import BUG, SUCCESS, as_typed, command_line, told_once
from ..flags import add_flags, options_of
from ..parsing import OneSentenceParser
from ..together import refuse_ranks

NAME = "convert.py"


def build_parser() -> argparse.ArgumentParser:
    """All flags; those of mlx_lm.convert keep their names and meaning."""
    parser = OneSentenceParser(
        as_typed(f"python {NAME}"),
        description="Turn a target model and a recurrent drafter into one MLX bundle.",
        epilog="Exit codes: 0, 1 where --check failed (or for a bug), 2 where something has to be "
        "changed, 130 after Ctrl-C.",
    )
    add_flags(parser, Options)
    return parser


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Convert, showing progress and a report.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0; 1 where the check failed.
    """
    if not arguments:
        from .convert_screen import explain

        if not launched_rank():
            explain()
        return SUCCESS
    with told_once():
        options = options_of(Options, build_parser().parse_args(arguments))
    # After the flags are read, so that --help and slips cost no loading time.
    from ..bars import StageBars
    from ..output import make_console
    from .convert_screen import show_report

    refuse_ranks("Conversion")
    try:
        with ended_in_order(), StageBars(make_console()) as screen:
            report = convert(**asdict(options), progress=screen.move)
    except KeyboardInterrupt:
        stopped = "interrupted; what was not finished has been removed."
        raise KeyboardInterrupt(stopped) from None
    words = ["--trust-remote-code"] if options.trust_remote_code else []
    show_report(report, words)
    return BUG if report.check is not None and not report.check.passed else SUCCESS


if __name__ == "__main__":
    sys.exit(main())
