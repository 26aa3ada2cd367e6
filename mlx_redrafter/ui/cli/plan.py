"""The command line of ``python -m mlx_redrafter.plan``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..parsing import OneSentenceParser, count

if TYPE_CHECKING:
    from ...engine.model import SpeculativeModel
    from ...planning.planner import Planner

SAMPLE = "Explain, with an example, what this is good for."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, decode a sample, and show what the planner makes of it.

    Args:
        arguments: The command line without the program's name; by default the process's own.

    Returns:
        0; 2 where the input has to be changed.
    """
    parser = OneSentenceParser(
        prog="plan",
        description="Measure what drafting costs on this machine, and what it would gain.",
    )
    parser.add_argument("model", help="a bundle: directory or Hub repo")
    parser.add_argument("--drafter", help="a drafter other than the bundle's own")
    parser.add_argument(
        "--adapter-path", metavar="PATH", help="a fine-tuned adapter of the target (LoRA, DoRA)"
    )
    parser.add_argument("--prompt", action="append", help="sample to draft on; may be repeated")
    parser.add_argument("--tokens", type=count(8), default=192, help="length of each sample's text")
    parser.add_argument("--temp", type=float, default=0.0, help="sampling temperature")
    parser.add_argument("--recalibrate", action="store_true", help="measure again")
    options = parser.parse_args(arguments)
    # After the flags are read, so that --help and slips cost no loading time.
    from ...errors import RedrafterError
    from ...text.loading import load

    console = Console()
    try:
        model, tokenizer = load(
            options.model, options.drafter, adapter_path=options.adapter_path, plan=False
        )
        planner = make_planner(model, console, recalibrate=options.recalibrate)
        context = _decode_samples(model, tokenizer, planner, options)
    except RedrafterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from .plan_view import plan_report

    console.print(plan_report(planner, context))
    return 0


def make_planner(model: SpeculativeModel, console: Console, *, recalibrate: bool) -> Planner:
    """A planner for the model, with a progress line while costs are measured.

    Raises:
        RedrafterError: If the model has no drafter to plan for.
    """
    from ...drafting.drafter import Drafter
    from ...errors import RedrafterError
    from ...planning.planner import Planner

    if not isinstance(model.drafter, Drafter):
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


def _decode_samples(model: SpeculativeModel, tokenizer: Any, planner: Planner, options: Any) -> int:
    """Let the planner see drafts on real text; return the context's length at the end."""
    from ...text.generate import stream_generate

    prompts = options.prompt or _own_questions(options.model) or [SAMPLE]
    context = 0
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        given = messages if tokenizer.has_chat_template else prompt
        for response in stream_generate(
            model, tokenizer, given, max_tokens=options.tokens, temperature=options.temp,
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
