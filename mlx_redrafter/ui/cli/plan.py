"""The command line of ``python -m mlx_redrafter.plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..entry import SUCCESS, as_typed, command_line
from ..flags import add_flags, flag, options_of
from ..model_flags import LoadFlags
from ..opening import prepare
from ..parsing import OneSentenceParser, count, temperature

if TYPE_CHECKING:
    from rich.console import Console

    from ...engine.model import SpeculativeModel
    from ...planning.planner import Planner

NAME = "python -m mlx_redrafter.plan"
SAMPLE = "Explain, with an example, what this is good for."


@dataclass(frozen=True)
class PlanFlags(LoadFlags):
    """What is planned for, and on which samples."""

    model: str = flag("", "model", "a bundle: directory or Hub repo", positional=True)
    prompt: list[str] = flag(
        (), "samples", "text to draft on; may be repeated", repeated=True, aliases=("p",),
        metavar="TEXT",
    )  # fmt: skip
    tokens: int = flag(192, "samples", "length of each sample's text", reader=count(8))
    temperature: float = flag(
        0.0, "samples", "sampling temperature", reader=temperature, aliases=("temp",), metavar="X"
    )
    recalibrate: bool = flag(False, "samples", "measure this machine again")


def build_parser() -> OneSentenceParser:
    """The parser."""
    parser = OneSentenceParser(
        as_typed(NAME),
        description="Measure what drafting costs on this machine, and what it would gain.",
    )
    add_flags(parser, PlanFlags)
    return parser


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Measure, decode a sample, and show what the planner makes of it.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0.
    """
    options = options_of(PlanFlags, build_parser().parse_args(arguments))
    # After the flags are read, so that --help and slips cost no loading time.
    from ...text.loading import load
    from ..output import make_console
    from ..quiet import quiet_libraries
    from .plan_view import plan_report

    quiet_libraries()
    console = make_console()
    prepare(options.model, options.revision)
    model, tokenizer = load(options.model, plan=False, **options.load_options())
    planner = make_planner(model, make_console(errors=True), recalibrate=options.recalibrate)
    context = _decode_samples(model, tokenizer, planner, options)
    console.print(plan_report(planner, context))
    return SUCCESS


def make_planner(model: SpeculativeModel, console: Console, *, recalibrate: bool) -> Planner:
    """A planner for the model, with a progress line while costs are measured.

    Raises:
        RedrafterError: If the model has no drafter to plan for.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from ...errors import RedrafterError
    from ...planning.planner import Planner

    if model.head is None:
        raise RedrafterError(
            "This model has no drafter, so there is nothing to plan: pass a bundle, or --drafter."
        )
    columns = (
        TextColumn("measuring this machine"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        return Planner.for_model(
            model,
            recalibrate=recalibrate,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _decode_samples(
    model: SpeculativeModel, tokenizer: Any, planner: Planner, options: PlanFlags
) -> int:
    """Let the planner see drafts on real text; return the context's length at the end."""
    from ...text.generate import stream_generate

    prompts = options.prompt or _own_questions(options.model) or [SAMPLE]
    context = 0
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        given = messages if tokenizer.has_chat_template else prompt
        for response in stream_generate(
            model, tokenizer, given, max_tokens=options.tokens, temperature=options.temperature,
            planner=planner,
        ):  # fmt: skip
            context = response.prompt_tokens + response.generation_tokens
    return context


def _own_questions(model: str) -> list[str]:
    """A few of the questions that a bundle brings along, if it does."""
    import json

    path = Path(model) / "questions.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()[:200:25]]
    return [row["question"] for row in rows if "question" in row]
