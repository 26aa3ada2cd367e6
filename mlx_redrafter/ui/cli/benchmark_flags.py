"""The flags of ``python -m mlx_redrafter.benchmark``, read without importing anything slow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...benchmark.names import PRECISIONS, STORED
from ..entry import as_typed
from ..flags import add_flags, flag, options_of
from ..model_flags import ModelFlags
from ..parsing import (
    LARGEST_SEED,
    LONGEST_BEAM,
    WIDEST_BEAM,
    OneSentenceParser,
    count,
    place,
    share,
    temperature,
)

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...benchmark.contestants import Task
    from ...benchmark.prompts import Conversation

NAME = "python -m mlx_redrafter.benchmark"
WIDTHS, LENGTHS = (1, 2, 3, 4, 8), (1, 2, 3, 4, 5, 7)
LONGEST_CONTEXT = 2**24
_MODEL, _ANSWERS, _SHAPES, _REPORT = "model", "answers", "shapes", "report"
_CONTESTANTS, _CONTEXTS = "contestants", "contexts"
_PRECISION = "stored (on a CPU in float32), a dtype, or quantised here and now"


@dataclass(frozen=True)
class ReportFlags:
    """Where results go."""

    json: Path | None = flag(
        None, _REPORT, "write everything as JSON", reader=place, metavar="FILE", own=True
    )
    csv: Path | None = flag(
        None, _REPORT, "write the measurements as a table", reader=place, metavar="FILE", own=True
    )
    output: Path | None = flag(
        None,
        _REPORT,
        "write JSON, CSV and pictures into a directory",
        reader=place,
        metavar="DIR",
        own=True,
    )
    no_plots: bool = flag(False, _REPORT, "leave the pictures out")


@dataclass(frozen=True)
class AnswerFlags:
    """What is answered, and how."""

    prompts: Path | None = flag(
        None, _ANSWERS, 'JSON Lines with "turns", "question", "messages", "prompt" or "text", or '
        "plain text; default: those that the bundle brings along", reader=place, metavar="FILE",
        own=True,
    )  # fmt: skip
    limit: int = flag(20, _ANSWERS, "conversations, evenly spread over the file", reader=count(1))
    max_tokens: int = flag(128, _ANSWERS, "longest answer", reader=count(1), aliases=("m",))
    repeats: int = flag(5, _ANSWERS, "times that everything is measured", reader=count(1))
    temperature: float = flag(
        0.0, _ANSWERS, "sampling temperature", reader=temperature, aliases=("temp",), metavar="X"
    )
    top_p: float = flag(1.0, _ANSWERS, "as in mlx_lm", reader=share, metavar="P")
    top_k: int = flag(0, _ANSWERS, "as in mlx_lm", reader=count(0), metavar="K")
    min_p: float = flag(0.0, _ANSWERS, "as in mlx_lm", reader=share, metavar="P")
    seed: int = flag(0, _ANSWERS, "names the samples", reader=count(0, LARGEST_SEED))
    ignore_chat_template: bool = flag(False, _ANSWERS, "ask questions as bare text")

    def task(self, tokenizer: TokenizerWrapper, temperature: float) -> Task:
        """How answers are made at one temperature."""
        from ...benchmark.contestants import Task
        from ...sampling import SamplingConfig

        sampling = SamplingConfig(
            temperature=temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
        )
        return Task(tokenizer, self.max_tokens, sampling)


@dataclass(frozen=True)
class RunFlags(ReportFlags, AnswerFlags, ModelFlags):
    """Who takes part in a comparison."""

    report: Path | None = flag(
        None, _REPORT, "write a page of Markdown with the tables, the machine and the command",
        reader=place, metavar="FILE", own=True,
    )  # fmt: skip
    temperature: list[float] = flag(  # type: ignore[assignment]
        (), _ANSWERS, "sampling temperatures; default 0, and 1 too where prompts have categories",
        reader=temperature, several=True, aliases=("temp",), metavar="X",
    )  # fmt: skip
    precision: str = flag(STORED, _MODEL, _PRECISION, choices=PRECISIONS)
    beam_width: int | None = flag(
        None, _CONTESTANTS, "beams kept while drafting", reader=count(1, WIDEST_BEAM), metavar="W"
    )
    beam_length: int | None = flag(
        None, _CONTESTANTS, "tokens drafted ahead", reader=count(1, LONGEST_BEAM), metavar="L"
    )
    node_budget: int | None = flag(
        None, _CONTESTANTS, "candidates verified at most; without any of these three a planner "
        "chooses the shapes, or plain decoding", reader=count(1, WIDEST_BEAM),
    )  # fmt: skip
    copy: bool = flag(
        True, _CONTESTANTS, "draft no copies of the text; no contestant that copies only",
        negative="no-copy",
    )  # fmt: skip
    recalibrate: bool = flag(False, _CONTESTANTS, "measure again what the planner goes by")
    other_drafter: list[str] = flag(
        (), _CONTESTANTS, "draft with this drafter too, such as one of independent heads; may be "
        "repeated", repeated=True, metavar="PATH_OR_REPO", own=True,
    )  # fmt: skip
    draft_model: str | None = flag(
        None, _CONTESTANTS, "mlx-lm's speculative decoding with this smaller model takes part too",
        metavar="PATH_OR_REPO", own=True,
    )  # fmt: skip
    num_draft_tokens: list[int] = flag(
        (2, 3, 5), _CONTESTANTS, "tokens it drafts in a step, several are tried",
        reader=count(1, WIDEST_BEAM), several=True, metavar="N",
    )  # fmt: skip

    def temperatures(self, conversations: Sequence[Conversation]) -> list[float]:
        """Those asked for; else 0, and 1 as well for a file whose prompts have categories."""
        if self.temperature:
            return list(dict.fromkeys(self.temperature))
        categories = {conversation.category for conversation in conversations} - {""}
        return [0.0, 1.0] if len(categories) > 1 else [0.0]


@dataclass(frozen=True)
class SweepFlags(ReportFlags, AnswerFlags, ModelFlags):
    """The grid of a sweep."""

    precision: list[str] = flag((STORED,), _MODEL, _PRECISION, choices=PRECISIONS, several=True)
    limit: int = flag(8, _ANSWERS, "conversations, evenly spread over the file", reader=count(1))
    max_tokens: int = flag(64, _ANSWERS, "longest answer", reader=count(1), aliases=("m",))
    repeats: int = flag(3, _ANSWERS, "times that everything is measured", reader=count(1))
    temperature: list[float] = flag(  # type: ignore[assignment]
        (0.0, 1.0), _ANSWERS, "sampling temperatures", reader=temperature, several=True,
        aliases=("temp",), metavar="X",
    )  # fmt: skip
    beam_width: list[int] = flag(
        WIDTHS, _SHAPES, "beams", reader=count(1, WIDEST_BEAM), several=True, metavar="N"
    )
    beam_length: list[int] = flag(
        LENGTHS, _SHAPES, "tokens ahead", reader=count(1, LONGEST_BEAM), several=True, metavar="N"
    )
    node_budget: int | None = flag(
        None, _SHAPES, "candidates verified at most; default: all that the beams opened",
        reader=count(1, WIDEST_BEAM),
    )  # fmt: skip


@dataclass(frozen=True)
class CostFlags(ReportFlags, ModelFlags):
    """Where the cost of forwards is measured."""

    precision: str = flag(STORED, _MODEL, _PRECISION, choices=PRECISIONS)
    contexts: list[int] | None = flag(
        None, _CONTEXTS, "tokens before the forward; default 0 1024 8192, as far as they fit",
        reader=count(0, LONGEST_CONTEXT), several=True, metavar="N",
    )  # fmt: skip
    beyond_limit: bool = flag(
        False, _CONTEXTS, "time longer contexts than the model was made for; only where positions "
        "are rotations",
    )  # fmt: skip


COMMANDS: dict[str, tuple[type[Any], str, str]] = {
    "run": (
        RunFlags,
        "mlx-lm, plain and drafted decoding side by side",
        "Answer the same prompts with mlx-lm, with plain and with drafted decoding, in turns, and "
        "compare times and texts.",
    ),
    "sweep": (
        SweepFlags,
        "beam width x length x temperature x precision, each against plain decoding",
        "Measure every beam shape at every temperature and precision against plain decoding in "
        "turns. Results are written as they come; Ctrl-C keeps what was measured.",
    ),
    "cost": (
        CostFlags,
        "the time of a forward over 1 to 64 tokens, behind contexts",
        "Measure how long a forward over n tokens takes behind contexts, and a draft.",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all three commands."""
    name = as_typed(NAME)
    parser = OneSentenceParser(
        name,
        description="What decoding costs and what drafting gains, measured on this machine.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, (flags, words, description) in COMMANDS.items():
        one = commands.add_parser(
            command, prog=f"{name} {command}", help=words, description=description
        )
        add_flags(one, flags)
    return parser


def parse_benchmark_options(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command and its flags; leaves with code 2 and one sentence where there is none."""
    parser = build_parser()
    values = parser.parse_args(arguments)
    if values.command is None:
        parser.error("choose a command: run, sweep or cost")
    return values.command, options_of(COMMANDS[values.command][0], values)
