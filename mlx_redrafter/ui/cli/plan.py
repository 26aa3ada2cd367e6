"""The command line of ``python -m mlx_redrafter.plan``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..entry import SUCCESS, as_typed, command_line, told_once
from ..flags import add_flags, compared, flag, options_of
from ..model_flags import ModelFlags
from ..opening import prepare
from ..parsing import OneSentenceParser, count, temperature
from ..prompts import given_prompts
from ..together import Together, started_alike, together

if TYPE_CHECKING:
    from rich.console import Console

    from ...engine.model import SpeculativeModel
    from ...planning.planner import Planner

NAME = "python -m mlx_redrafter.plan"
SAMPLE = "Explain, with an example, what this is good for."
# Of the questions that a bundle brings along so many are asked.
SAMPLES = 8


# Samples are decoded until there is enough to say something, but no longer than for so many tokens
# and seconds.
MOST_TOKENS = 1000
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class PlanFlags(ModelFlags):
    """What is planned for, and on which samples."""

    bundle: str | None = flag(
        None, "model", "the model, as --model names it", positional=True, optional=True,
        metavar="MODEL", own=True,
    )  # fmt: skip
    prompt: list[str] = flag(
        (), "samples", "text to draft on, - for stdin; may be repeated", repeated=True,
        aliases=("p",), metavar="TEXT",
    )  # fmt: skip
    tokens: int = flag(192, "samples", "length of each sample's text", reader=count(8))
    temperature: float = flag(
        0.0, "samples", "sampling temperature", reader=temperature, aliases=("temp",), metavar="X"
    )
    recalibrate: bool = flag(False, "samples", "measure this machine again")

    @property
    def path(self) -> str:
        """The model that either way names, the pocket where neither does.

        Raises:
            RedrafterError: If both do and differ, or the pocket is not there.
        """
        from ...errors import RedrafterError

        if self.bundle is not None and self.model not in (None, self.bundle):
            raise RedrafterError(
                f"Two models are named, {self.bundle} and {self.model}: leave one out."
            )
        return self.bundle if self.bundle is not None else super().path


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
    parser = build_parser()
    with told_once():
        options = options_of(PlanFlags, parser.parse_args(arguments))
        if not all(prompt.strip() for prompt in options.prompt or ()):
            parser.error("--prompt is empty: pass the text to decode")
        options = replace(options, prompt=given_prompts(options.prompt))
        _ = options.path  # one model has to be named
    # After the flags are read, so that --help and slips cost no loading time.
    from ...text.loading import load
    from ..output import make_console
    from ..quiet import quiet_libraries
    from .plan_view import plan_report

    quiet_libraries()
    started_alike(NAME, compared(options))
    with together() as group:
        console = make_console(quiet=not group.leads)
        prepare(options.path, options.revision)
        model, tokenizer = load(options.path, plan=False, **options.load_options())
        errors = make_console(errors=True, quiet=not group.leads)
        planner = make_planner(model, errors, group, recalibrate=options.recalibrate)
        context = _decode_samples(model, tokenizer, planner, options, errors, group)
        console.print(plan_report(planner, context))
    return SUCCESS


def make_planner(
    model: SpeculativeModel, console: Console, group: Together, *, recalibrate: bool
) -> Planner:
    """A planner for the model, with a progress line while costs are measured.

    Raises:
        RedrafterError: If the model has no drafter to plan for.
    """
    from ...errors import SharedError
    from ...planning.planner import Planner
    from ...planning.planner_for import planner_for
    from ..bars import passing_bar

    if model.head is None:
        raise SharedError(
            "This model has no drafter, so there is nothing to plan: pass a bundle, or --drafter."
        )
    with passing_bar(console, "measuring this machine", group.check) as progress:
        planner = planner_for(model, recalibrate=recalibrate, progress=progress)
    assert isinstance(planner, Planner), "a model with a head gets one"
    return planner


def _decode_samples(
    model: SpeculativeModel,
    tokenizer: Any,
    planner: Planner,
    options: PlanFlags,
    console: Console,
    group: Together,
) -> int:
    """Let the planner see drafts on real text until it can say something.

    Every sample is decoded once; then they come round again, drawn with other seeds above
    temperature 0.

    Returns:
        The context's length at the end.
    """
    from itertools import count as numbers

    from rich.progress import Progress

    from ..bars import WordsColumn, bar_column

    prompts = options.prompt or group.read(lambda: _own_questions(options.path)) or [SAMPLE]
    columns = (
        WordsColumn("drafting on samples"),
        bar_column(console),
        WordsColumn("{task.description}"),
    )
    started, tokens, context = time.perf_counter(), 0, 0
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=MOST_TOKENS)
        for number in numbers():
            group.check()
            text = prompts[number % len(prompts)]
            for length in _decode(model, tokenizer, planner, options, text, number):
                context, tokens = length, tokens + 1
                words = f"{tokens:,} tokens, {planner.state.value}"
                progress.update(task, completed=min(tokens, MOST_TOKENS), description=words)
            enough = planner.known and number + 1 >= len(prompts)
            seconds = model.agreed(time.perf_counter() - started)
            if enough or tokens >= MOST_TOKENS or seconds > MOST_SECONDS:
                return context
    return context


def _decode(
    model: SpeculativeModel,
    tokenizer: Any,
    planner: Planner,
    options: PlanFlags,
    text: str,
    seed: int,
) -> Iterator[int]:
    """Decode one sample; yields the context's length at each token."""
    from ...text.generate import stream_generate

    messages = [{"role": "user", "content": text}]
    given = messages if tokenizer.has_chat_template else text
    for response in stream_generate(
        model, tokenizer, given, max_tokens=options.tokens, temperature=options.temperature,
        seed=seed, planner=planner, copy=False,
    ):  # fmt: skip
        yield response.prompt_tokens + response.generation_tokens


def _own_questions(model: str) -> list[str]:
    """A few of the questions or prompts that a bundle brings along, if it does.

    Raises:
        RedrafterError: If their file is not understood.
    """
    from ...benchmark.prompts import find_own_prompts, read_conversations
    from ...text.prompts import plain_messages

    path = find_own_prompts(Path(model))
    if path is None:
        return []
    openings = [one.opening for one in read_conversations(path, SAMPLES)]
    return [
        one if isinstance(one, str) else str(plain_messages(one)[-1]["content"]) for one in openings
    ]
