"""The command line of convert.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..ending import ended_in_order
from ..entry import BUG, SUCCESS, as_typed, command_line
from ..flags import add_flags, flag, options_of
from ..parsing import OneSentenceParser
from ..together import refuse_ranks

NAME = "convert.py"
DRAFTER_BITS = ("4", "5", "6", "8", "none")
# mlx-lm's, repeated here so that --help does not wait for it; a test compares them.
MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
DTYPES = ("float16", "bfloat16", "float32")
_WHAT, _HOW, _AFTER = "what", "precision", "the bundle"


def drafter_bits(text: str) -> int | str:
    """Bits of the drafter from the command line: one of 4, 5, 6, 8, or "none"."""
    if text not in DRAFTER_BITS:
        raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(DRAFTER_BITS)}")
    return text if text == "none" else int(text)


@dataclass(frozen=True)
class ConvertFlags:
    """The arguments of :func:`mlx_redrafter.convert`; mlx_lm.convert's keep their meaning."""

    hf_path: str | None = flag(
        None,
        _WHAT,
        "target: a directory, Hub repository or GGUF file",
        aliases=("model",),
        metavar="TARGET",
    )
    gguf_file: str | None = flag(
        None, _WHAT, "which GGUF file of TARGET, where it holds several", metavar="NAME"
    )
    drafter: str | None = flag(
        None, _WHAT, "drafter: a directory, Hub repository or weight file; without --hf-path it "
        "goes into the existing bundle --mlx-path", metavar="DRAFTER",
    )  # fmt: skip
    mlx_path: str | None = flag(
        None, _WHAT, "bundle to write (default: models/ and TARGET's name)", metavar="OUT"
    )
    revision: str | None = flag(
        None, _WHAT, "branch, tag or commit of TARGET on the Hub", metavar="NAME"
    )
    trust_remote_code: bool = flag(
        False, _WHAT, "let Python files that come with TARGET run on this machine"
    )
    quantize: bool = flag(False, _HOW, "quantise target and drafter", aliases=("q",))
    q_bits: int | None = flag(None, _HOW, "bits per weight (default: the mode's own, 4 for affine)")
    q_group_size: int | None = flag(
        None, _HOW, "weights that share a scale (default: 64 for affine)"
    )
    q_mode: str = flag("affine", _HOW, "quantisation mode of the target", choices=MODES)
    quant_predicate: str | None = flag(
        None, _HOW, "mixed-bit recipe of the target", choices=RECIPES
    )
    drafter_q_bits: int | str | None = flag(
        None, _HOW,
        "bits of the drafter's residual blocks and head (default: --q-bits with -q, at least 4)",
        reader=drafter_bits, metavar="{4,5,6,8,none}",
    )  # fmt: skip
    drafter_rnn_q_bits: int | str | None = flag(
        None, _HOW, "bits of the drafter's rnn_u, rnn_w and input_proj (default: 8)",
        reader=drafter_bits, metavar="{4,5,6,8,none}",
    )  # fmt: skip
    dtype: str | None = flag(None, _HOW, "type of what is not quantised", choices=DTYPES)
    dequantize: bool = flag(False, _HOW, "turn quantised layers into full ones", aliases=("d",))
    overwrite: bool = flag(False, _AFTER, "replace OUT, or the drafter in it")
    check: bool = flag(False, _AFTER, "decode with the bundle and compare with the source")
    upload_repo: str | None = flag(
        None, _AFTER, "upload the bundle to this Hub repository", metavar="REPO"
    )


def build_parser() -> argparse.ArgumentParser:
    """All flags; those of mlx_lm.convert keep their names and meaning."""
    parser = OneSentenceParser(
        as_typed(f"python {NAME}"),
        description="Turn a target model and a recurrent drafter into one MLX bundle.",
        epilog="Exit codes: 0, 1 where --check failed (or for a bug), 2 where something has to be "
        "changed, 130 after Ctrl-C.",
    )
    add_flags(parser, ConvertFlags)
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

        explain()
        return SUCCESS
    options = options_of(ConvertFlags, build_parser().parse_args(arguments))
    # After the flags are read, so that --help and slips cost no loading time.
    from ...conversion import convert
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
