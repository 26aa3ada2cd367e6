"""The flags of ``python -m mlx_redrafter.benchmark``, read without importing anything slow."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...benchmark.names import PRECISIONS, STORED
from ..parsing import (
    LARGEST_SEED,
    LONGEST_BEAM,
    WIDEST_BEAM,
    OneSentenceParser,
    count,
    min_p,
    temperature,
    top_p,
)

PROGRAM = "benchmark"
WIDTHS, LENGTHS = (1, 2, 3, 4, 8), (1, 2, 3, 4, 5, 7)
LONGEST_CONTEXT = 2**24


def build_parser() -> argparse.ArgumentParser:
    """The parser of all three commands."""
    parser = OneSentenceParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="What decoding costs and what drafting gains, measured on this machine.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        prog=f"{PROGRAM} run",
        allow_abbrev=False,
        help="mlx-lm, plain and drafted decoding side by side",
        description="Answer the same prompts with mlx-lm, with plain and with drafted decoding, in "
        "turns, and compare times and texts.",
    )
    sweep = commands.add_parser(
        "sweep",
        prog=f"{PROGRAM} sweep",
        allow_abbrev=False,
        help="beam width x length x temperature x precision, each against plain decoding",
        description="Measure every beam shape at every temperature and precision against plain "
        "decoding in turns. Results are written as they come; Ctrl-C keeps what was measured.",
    )
    cost = commands.add_parser(
        "cost",
        prog=f"{PROGRAM} cost",
        allow_abbrev=False,
        help="the time of a forward over 1 to 64 tokens, behind contexts",
        description="Measure how long a forward over n tokens takes behind contexts, and a draft.",
    )
    for command in (run, sweep, cost):
        _add_model_flags(command, several=command is sweep)
    for command in (run, sweep):
        _add_answer_flags(command, several=command is sweep)
    _add_run_flags(run)
    _add_sweep_flags(sweep)
    _add_cost_flags(cost)
    for command in (run, sweep, cost):
        _add_report_flags(command)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser, *, several: bool) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="PATH_OR_REPO", help="a bundle or any mlx-lm model; default: the pocket"
    )
    group.add_argument(
        "--drafter", metavar="PATH_OR_REPO", help="a drafter other than the bundle's own"
    )
    group.add_argument(
        "--adapter-path", metavar="PATH", help="a fine-tuned adapter of the target (LoRA, DoRA)"
    )
    words = "stored (on a CPU in float32), a dtype, or quantised here and now"
    if several:
        group.add_argument(
            "--precision", nargs="+", choices=PRECISIONS, default=[STORED], help=words
        )
    else:
        group.add_argument("--precision", choices=PRECISIONS, default=STORED, help=words)


def _add_answer_flags(parser: argparse.ArgumentParser, *, several: bool) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='JSON Lines with "turns", "question", "messages", "prompt" or "text", or plain text; '
        "default: those that the bundle brings along",
    )
    limit, tokens, repeats = (8, 64, 3) if several else (20, 128, 5)
    group.add_argument(
        "--limit",
        type=count(1),
        metavar="N",
        default=limit,
        help=f"conversations, evenly spread over the file; default {limit}",
    )
    group.add_argument(
        "--max-tokens",
        "-m",
        type=count(1),
        metavar="N",
        default=tokens,
        help=f"longest answer; default {tokens}",
    )
    group.add_argument(
        "--repeats",
        type=count(1),
        metavar="N",
        default=repeats,
        help=f"times that everything is measured; default {repeats}",
    )
    if several:
        group.add_argument(
            "--temp", type=temperature, nargs="+", metavar="X", default=[0.0, 1.0],
            help="sampling temperatures; default 0 1",
        )  # fmt: skip
    else:
        group.add_argument(
            "--temp", type=temperature, metavar="X", default=0.0, help="sampling temperature"
        )
    group.add_argument("--top-p", type=top_p, metavar="P", default=1.0, help="as in mlx_lm")
    group.add_argument("--top-k", type=count(0), metavar="K", default=0, help="as in mlx_lm")
    group.add_argument("--min-p", type=min_p, metavar="P", default=0.0, help="as in mlx_lm")
    group.add_argument("--seed", type=count(0, LARGEST_SEED), metavar="N", default=0)
    group.add_argument(
        "--ignore-chat-template", action="store_true", help="ask questions as bare text"
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contestants")
    group.add_argument("--beam-width", type=count(1, WIDEST_BEAM), metavar="W")
    group.add_argument("--beam-length", type=count(1, LONGEST_BEAM), metavar="L")
    group.add_argument(
        "--node-budget",
        type=count(1, WIDEST_BEAM),
        metavar="N",
        help="without any of these three a planner chooses the shapes, or plain decoding",
    )
    group.add_argument(
        "--recalibrate", action="store_true", help="measure again what the planner goes by"
    )
    group.add_argument(
        "--other-drafter",
        action="append",
        default=[],
        metavar="PATH_OR_REPO",
        help="draft with this drafter too, such as one of independent heads; may be repeated",
    )
    group.add_argument(
        "--draft-model",
        metavar="PATH_OR_REPO",
        help="mlx-lm's speculative decoding with this smaller model takes part too",
    )
    group.add_argument(
        "--num-draft-tokens",
        type=count(1, WIDEST_BEAM),
        nargs="+",
        metavar="N",
        default=[2, 3, 5],
        help="tokens it drafts in a step, several are tried; default 2 3 5",
    )


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shapes")
    for name, largest, default in (
        ("width", WIDEST_BEAM, WIDTHS),
        ("length", LONGEST_BEAM, LENGTHS),
    ):
        group.add_argument(
            f"--beam-{name}",
            type=count(1, largest),
            nargs="+",
            metavar="N",
            default=list(default),
            help=f"default {' '.join(map(str, default))}",
        )
    group.add_argument(
        "--node-budget",
        type=count(1, WIDEST_BEAM),
        metavar="N",
        help="candidates verified at most; default: all that the beams opened",
    )


def _add_cost_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contexts")
    group.add_argument(
        "--contexts",
        type=count(0, LONGEST_CONTEXT),
        nargs="+",
        metavar="N",
        help="tokens before the forward; default 0 1024 8192, as far as they fit",
    )
    group.add_argument(
        "--beyond-limit",
        action="store_true",
        help="time longer contexts than the model was made for; only where positions are rotations",
    )


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the measurements as a table")
    group.add_argument(
        "--output", type=Path, metavar="DIR", help="write JSON, CSV and pictures into a directory"
    )
    group.add_argument("--no-plots", action="store_true", help="leave the pictures out")
