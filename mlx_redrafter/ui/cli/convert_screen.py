"""What convert.py shows: an explanation, progress bars, and what was written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ...system.files import size_words
from ..amounts import count_words
from ..fitting import Fields, Figures
from ..model_flags import chat_command
from ..output import make_console

if TYPE_CHECKING:
    from ...conversion import CheckReport, ConversionReport, PartReport

EXAMPLES = (
    (
        "Target and drafter, 4 bits, checked afterwards",
        "python convert.py --hf-path lmsys/vicuna-7b-v1.3 --drafter path/to/drafter \\\n"
        "    --mlx-path models/vicuna-4bit -q --check",
    ),
    ("A target alone", "python convert.py --hf-path TARGET -q"),
    (
        "A GGUF file; Q4_0, Q4_1 and Q8_0 are kept as they are",
        "python convert.py --hf-path model.Q4_0.gguf --drafter DRAFTER",
    ),
    (
        "A drafter alone, into a bundle that exists",
        "python convert.py --drafter drafter.pt --mlx-path models/vicuna-4bit",
    ),
    (
        "Full precision target, drafter at 8 bits",
        "python convert.py --hf-path TARGET --drafter DRAFTER --drafter-q-bits 8",
    ),
    (
        "Mixed bits for the target",
        "python convert.py --hf-path TARGET -q --quant-predicate mixed_4_6",
    ),
)
SHOWN_LAYERS = 4


def explain() -> None:
    """Say what convert.py is for, with examples."""
    parts: list[RenderableType] = [
        Text(
            "Turns a target model and a recurrent drafter, as PyTorch users have them, into one "
            "bundle that chat.py, mlx_redrafter.load and mlx_lm.load open. TARGET and DRAFTER are "
            "directories or Hub repositories with safetensors, PyTorch or GGUF weights; TARGET may "
            "also be a GGUF file, DRAFTER one weight file."
        )
    ]
    for title, command in EXAMPLES:
        parts += [Text(), Text(title, style="bold"), Text(command, style="cyan")]
    parts += [Text(), Text("python convert.py --help lists every flag.", style="dim")]
    make_console().print(Panel(Group(*parts), title="convert.py", border_style="chat.border"))


def show_report(report: ConversionReport, load_words: Sequence[str] = ()) -> None:
    """Print what was written, what was noticed, and the check's findings.

    Args:
        report: The conversion's.
        load_words: Flags without which the bundle does not load.
    """
    console = make_console()
    console.print(f"Written to {_short(report.path)}", markup=False, soft_wrap=True)
    table = Figures("", "parameters", "before", "after", "bits per weight")
    for title, part in (("target", report.target), ("drafter", report.drafter)):
        if part is not None:
            table.add_row(title, *_sizes(part))
    console.print(table)
    for title, part in (("target", report.target), ("drafter", report.drafter)):
        if part is not None and part.full_precision:
            console.print(
                f"Left in full precision in the {title}: {_layers(part)}.", soft_wrap=True
            )
    for note in report.notes:
        console.print(note, style="chat.note", markup=False, soft_wrap=True)
    if report.check is not None:
        console.print(_check_table(report.check))
        if report.check.failure is not None:
            console.print(report.check.failure, style="chat.error", markup=False, soft_wrap=True)
    if report.uploaded is not None:
        console.print(f"Uploaded to https://huggingface.co/{report.uploaded}", markup=False)
    command = chat_command(_short(report.path), *load_words)
    console.print(command, style="cyan", soft_wrap=True)


def _sizes(part: PartReport) -> tuple[str, str, str, str]:
    return (
        count_words(part.parameters),
        size_words(part.bytes_before),
        size_words(part.bytes_after),
        f"{part.bits_per_weight:.2f}",
    )


def _layers(part: PartReport) -> str:
    shown = ", ".join(part.full_precision[:SHOWN_LAYERS])
    more = len(part.full_precision) - SHOWN_LAYERS
    return f"{shown} and {more} more" if more > 0 else shown


def _check_table(check: CheckReport) -> RenderableType:
    rows = [("decoded", f"{check.prompts} prompts, {check.tokens} tokens")]
    if check.target_matches is not None:
        rows.append(("target's scores are those of mlx-lm's conversion", _sameness(check)))
    if check.draft_matches is not None:
        rows += [
            ("drafted text equals plain text", f"{check.draft_matches:.0%} of prompts"),
            ("tokens per step", f"{check.tokens_per_step:.2f}"),
        ]
    if check.drafter_agreement is not None:
        agreement = f"{check.drafter_agreement:.1%} of {check.drafter_positions}"
        rows.append(("quantised drafter chooses as the unquantised one", agreement))
    return Group(Text("Check", style="bold"), Fields(rows))


def _sameness(check: CheckReport) -> str:
    assert check.target_difference is not None
    if math.isnan(check.target_difference):
        return "no, they are NaN"
    return "bit for bit" if check.target_matches else f"no, off by {check.target_difference:.3g}"


def _short(path: Path) -> str:
    """Relative to where the command was given, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
