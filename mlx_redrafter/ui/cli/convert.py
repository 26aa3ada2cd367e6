"""The command line of convert.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mlx_lm.convert import MODEL_CONVERSION_DTYPES, QUANT_RECIPES

from ...conversion import convert
from ...conversion.options import DRAFTER_BITS, MODES
from ...errors import RedrafterError
from ..parsing import OneSentenceParser
from .convert_screen import ProgressScreen, explain, show_report

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def drafter_bits(text: str) -> int | str:
    """Bits of the drafter from the command line: one of 4, 5, 6, 8, or "none"."""
    if text == "none":
        return text
    if text.isdigit() and int(text) in DRAFTER_BITS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not one of 4, 5, 6, 8, none")


def build_parser() -> argparse.ArgumentParser:
    """All flags; those of mlx_lm.convert keep their names and meaning."""
    parser = OneSentenceParser(
        prog="convert.py",
        description="Turn a target model and a recurrent drafter into one MLX bundle.",
    )
    add = parser.add_argument
    add(
        "--hf-path",
        "--model",
        metavar="TARGET",
        help="target: a directory, Hub repository or GGUF file",
    )
    add(
        "--gguf-file",
        metavar="NAME",
        help="which GGUF file of TARGET, where it holds several",
    )
    add(
        "--drafter",
        metavar="DRAFTER",
        help="drafter: a directory, Hub repository or weight file; without --hf-path it goes into "
        "the existing bundle --mlx-path",
    )
    add("--mlx-path", metavar="OUT", help="bundle to write (default: models/ and TARGET's name)")
    add("-q", "--quantize", action="store_true", help="quantise target and drafter")
    add("--q-bits", type=int, help="bits per weight (default: the mode's own, 4 for affine)")
    add("--q-group-size", type=int, help="weights that share a scale (default: 64 for affine)")
    add("--q-mode", choices=list(MODES), default="affine", help="quantisation mode of the target")
    add("--quant-predicate", choices=QUANT_RECIPES, help="mixed-bit recipe of the target")
    add(
        "--drafter-q-bits",
        type=drafter_bits,
        metavar="{4,5,6,8,none}",
        help="bits of the drafter's residual blocks and head (default: --q-bits with -q)",
    )
    add(
        "--drafter-rnn-q-bits",
        type=drafter_bits,
        metavar="{4,5,6,8,none}",
        help="bits of the drafter's rnn_u, rnn_w and input_proj (default: 8)",
    )
    add("--dtype", choices=MODEL_CONVERSION_DTYPES, help="type of what is not quantised")
    add("-d", "--dequantize", action="store_true", help="turn quantised layers into full ones")
    add("--upload-repo", metavar="REPO", help="upload the bundle to this Hub repository")
    add("--overwrite", action="store_true", help="replace OUT, or the drafter in it")
    add("--check", action="store_true", help="decode with the bundle and compare with the source")
    add("--revision", help="branch, tag or commit of TARGET on the Hub")
    add("--trust-remote-code", action="store_true", help="allow TARGET's own Python files to run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, showing progress and a report.

    Args:
        arguments: The command line without the program's name; by default the process's own.

    Returns:
        0; 1 where the check failed; 2 where the input has to be changed; 130 after an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        explain()
        return 0
    options: dict[str, Any] = vars(build_parser().parse_args(arguments))
    try:
        with ProgressScreen() as screen:
            report = convert(**options, progress=screen.move)
    except RedrafterError as error:
        sys.stderr.write(f"convert.py: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("convert.py: interrupted; what was not finished has been removed.\n")
        return INTERRUPTED
    show_report(report)
    return 1 if report.check is not None and not report.check.passed else 0
