"""The command line of ``python -m mlx_redrafter.benchmark``."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..entry import INTERRUPTED, SUCCESS, command_line, told_once
from ..flags import compared
from ..opening import prepare
from ..together import started_alike, together
from .benchmark_flags import NAME, parse_benchmark_options
from .benchmark_job import Job

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...benchmark.comparison import Comparison
    from ...benchmark.contestants import Contestant, Task
    from ...benchmark.measuring import Round
    from ...benchmark.prompts import Conversation, Prompt
    from ...benchmark.sweep import Grid, Point
    from ...engine.model import SpeculativeModel


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Measure, show and write.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0; 130 after an interruption that left something to show.
    """
    with told_once():
        command, options = parse_benchmark_options(arguments)
    # After the flags are read, so that --help and slips cost no loading time.
    from ..output import make_console
    from ..quiet import quiet_libraries

    quiet_libraries()
    started_alike(f"{NAME} {command}", compared(options))
    prepare(options.path, options.revision)
    with together() as group:
        quiet = not group.leads
        console, screen = make_console(quiet=quiet), make_console(errors=True, quiet=quiet)
        job = Job(command, options, arguments, console, screen, group)
        try:
            code = {"run": _run, "sweep": _sweep, "cost": _cost}[command](job)
        except BrokenPipeError:  # no error by itself
            job.require_written()
            raise
        except KeyboardInterrupt:
            said = "interrupted before results were shown." if group.leads else ""
            raise KeyboardInterrupt(said) from None
        job.require_written()
        return code


def _run(job: Job) -> int:
    """Compare contestants; what was measured is kept when it is interrupted."""
    from ...benchmark.comparison import Comparisons, conclude
    from ...benchmark.precision import load_at

    options = job.options
    job.check()
    file, conversations = _conversations(job)
    environment = job.environment()
    model, tokenizer = load_at(options.path, options.precision, **options.load_options())
    contestants = _contestants(job, model, tokenizer)
    done: list[Comparison] = []
    interrupted = False
    for temperature in options.temperatures(conversations):
        task = options.task(tokenizer, temperature)
        prompts, rounds, interrupted = _rounds(job, contestants, conversations, model, task)
        if not rounds and not done:
            raise KeyboardInterrupt
        if rounds:
            settings = {**_settings(job, file, prompts), "sampling": asdict(task.sampling)}
            settings["temperature"] = temperature
            settings["completed_repeats"] = len(rounds)
            with job.finishing() as pressed:
                done.append(
                    conclude(environment, settings, contestants, prompts, rounds, model, task)
                )
                job.write(done[0] if len(done) == 1 else Comparisons(done))
            interrupted = interrupted or pressed()
        if interrupted:
            break
    return INTERRUPTED if _show(job, done, model.name) or interrupted else SUCCESS


def _rounds(
    job: Job,
    contestants: Sequence[Contestant],
    conversations: list[Conversation],
    model: SpeculativeModel,
    task: Task,
) -> tuple[list[Prompt], list[Round], bool]:
    """What is answered, complete repeats of it, and whether Ctrl-C ended them."""
    from ...benchmark.measuring import measure

    prompts: list[Prompt] = []
    rounds: list[Round] = []
    words = f"answering at temperature {task.sampling.temperature:g}"
    try:
        prompts = _prompts(job, conversations, model, task)
        with job.progress(words) as progress:
            for answers in measure(contestants, prompts, task, job.options.repeats, progress):
                rounds.append(answers)
    except KeyboardInterrupt:
        return prompts, rounds, True
    return prompts, rounds, False


def _show(job: Job, done: list[Comparison], name: str) -> bool:
    """Show what was measured, write the page and draw; returns whether Ctrl-C was pressed."""
    from ...benchmark.page import results_page
    from ...benchmark.plots import plot_comparison
    from .benchmark_view import run_report

    several = len(done) > 1
    try:
        with job.finishing() as pressed:
            # First what no disk can refuse; but whoever reads stdout may leave before the end.
            try:
                for comparison in done:
                    job.console.print(run_report(comparison, name))
            finally:
                job.write_page(lambda: results_page(done, name))
    finally:
        interrupted = any(  # the first that was ended is the last
            job.draw(plot_comparison, one, f"temperature-{one.temperature:g}" if several else "")
            for one in done
        )
    return interrupted or pressed()


def _sweep(job: Job) -> int:
    """Go through the grid; what was measured is kept when it is interrupted."""
    from ...benchmark.plots import plot_sweep
    from ...benchmark.sweep import Grid, Sweep
    from .benchmark_view import sweep_report

    options = job.options
    job.check()
    file, conversations = _conversations(job)
    grid = Grid(
        precisions=tuple(dict.fromkeys(options.precision)),
        temperatures=tuple(sorted(set(options.temperature))),
        widths=tuple(sorted(set(options.beam_width))),
        lengths=tuple(sorted(set(options.beam_length))),
        node_budget=options.node_budget,
    )
    environment = job.environment()
    settings = {**_settings(job, file, None), "grid": asdict(grid)}
    settings["conversations"] = len(conversations)
    sweep = Sweep(environment, settings, (), len(grid))
    interrupted = False
    try:
        with closing(_points(job, grid, conversations)) as points:
            for point in points:
                with job.finishing() as pressed:
                    sweep = Sweep(environment, settings, (*sweep.points, point), len(grid))
                    job.write(sweep)
                if pressed():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not sweep.points:
            raise
        interrupted = True
    try:
        job.console.print(sweep_report(sweep))
    finally:
        interrupted = job.draw(plot_sweep, sweep) or interrupted
    return INTERRUPTED if interrupted else SUCCESS


def _points(
    job: Job, grid: Grid, conversations: list[Conversation]
) -> Generator[Point, None, None]:
    """Every point of the grid; a precision is loaded when it is its turn."""
    from ...benchmark.precision import check_precision, release_memory

    for precision in grid.precisions:  # before hours are spent
        check_precision(job.options.path, precision, job.options.revision)
    for index, precision in enumerate(grid.precisions):
        yield from _points_at(job, grid, conversations, precision, index)
        release_memory()  # two models may be more than the machine holds


def _points_at(
    job: Job, grid: Grid, conversations: list[Conversation], precision: str, index: int
) -> Generator[Point, None, None]:
    """The points of one precision, the ``index``-th; its model lives no longer than this."""
    from ...benchmark.precision import load_at
    from ...benchmark.sweep import check_shapes, sweep_shapes

    options, shapes = job.options, grid.shapes
    done = index * len(grid) // len(grid.precisions)
    model, tokenizer = load_at(options.path, precision, **options.load_options())
    check_shapes(model, shapes)
    for temperature in grid.temperatures:
        task = options.task(tokenizer, temperature)
        prompts = _prompts(job, conversations, model, task)
        with job.progress(f"{precision}, temperature {temperature:g}") as progress:
            for point in sweep_shapes(model, precision, prompts, task, shapes, options.repeats):
                done += 1
                progress(done, len(grid))
                yield point


def _cost(job: Job) -> int:
    """Measure T(n)."""
    from ...benchmark.curve import fitting_contexts, measure_curve
    from ...benchmark.plots import plot_costs
    from ...benchmark.precision import load_at
    from .benchmark_view import cost_report

    options = job.options
    job.check()
    environment = job.environment()
    model, _ = load_at(options.path, options.precision, **options.load_options())
    contexts = fitting_contexts(model, options.contexts, beyond=options.beyond_limit)
    settings = _settings(job, None, None)
    with job.progress("measuring") as progress:
        curve = measure_curve(environment, settings, model, contexts, progress)
    try:
        with job.finishing() as pressed:
            try:
                job.console.print(cost_report(curve, model.name))
            finally:
                job.write(curve)
    finally:
        interrupted = job.draw(plot_costs, curve)
    interrupted = interrupted or pressed()
    return INTERRUPTED if interrupted else SUCCESS


def _conversations(job: Job) -> tuple[Path, list[Conversation]]:
    """The prompts file, and what is in it; of several processes rank 0 reads it."""
    from ...benchmark.prompts import Conversation, own_prompts, read_conversations

    options = job.options

    def read() -> tuple[str, list[dict[str, Any]]]:
        file = options.prompts or own_prompts(Path(options.path))
        return str(file), [asdict(one) for one in read_conversations(file, options.limit)]

    file, rows = job.group.read(read)
    return Path(file), [Conversation.from_dict(row) for row in rows]


def _prompts(
    job: Job, conversations: list[Conversation], model: SpeculativeModel, task: Task
) -> list[Prompt]:
    """All turns; later ones stand after plain decoding's answers, whoever answers them."""
    from ...benchmark.prompts import prepare
    from ...text.generate import generate

    def answer(ids: list[int]) -> str:
        sampling = task.sampling
        return generate(
            model, task.tokenizer, ids, max_tokens=task.max_tokens, draft=False, seed=sampling.seed,
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
            min_p=sampling.min_p,
        )  # fmt: skip

    chat = not job.options.ignore_chat_template
    with job.progress("preparing the later turns") as progress:
        return prepare(conversations, task.tokenizer, answer, chat=chat, progress=progress)


def _contestants(
    job: Job, model: SpeculativeModel, tokenizer: TokenizerWrapper
) -> list[Contestant]:
    """Who takes part: mlx-lm and plain decoding always, the others where they can."""
    from ...benchmark.contestants import (
        COPIED,
        DRAFTED,
        MlxLm,
        Ours,
        TwoModels,
        load_draft_model,
    )
    from ...benchmark.precision import other_drafter
    from ...engine.model import SpeculativeModel
    from ...planning.planner_for import planner_for

    options = job.options
    contestants: list[Contestant] = [MlxLm(model), Ours(model)]
    if model.drafter is not None:
        contestants.append(_drafting(job, model, DRAFTED))
    if options.copy and model.target.refusal is None:
        name = f"{model.name}, no drafter"
        alone = SpeculativeModel(model.target, None, name, model.config, ranks=model.ranks)
        with job.progress("measuring what forwards cost") as progress:
            planner = planner_for(alone, recalibrate=options.recalibrate, progress=progress)
        contestants.append(Ours(alone, COPIED, planner=planner, copy=True))
    for name in dict.fromkeys(options.other_drafter):
        other = other_drafter(model, tokenizer, name, options.precision)
        contestants.append(_drafting(job, other, f"{DRAFTED} by {name}"))
    if options.draft_model is not None:
        draft_model = load_draft_model(
            options.draft_model, tokenizer, trust_remote_code=options.trust_remote_code
        )
        sizes = sorted(set(options.num_draft_tokens))
        contestants += [TwoModels(model, draft_model, size) for size in sizes]
    return contestants


def _drafting(job: Job, model: SpeculativeModel, name: str) -> Contestant:
    """A drafting contestant: of the shape that is asked for, or planned."""
    from ...benchmark.contestants import Ours
    from ...drafting.shape import BeamShape
    from .plan import make_planner

    options = job.options
    names = ("beam_width", "beam_length", "node_budget")
    asked = {name.removeprefix("beam_"): getattr(options, name) for name in names}
    given = {key: value for key, value in asked.items() if value is not None}
    if given:
        return Ours(model, name, shape=BeamShape(**given), copy=options.copy)
    planner = make_planner(model, job.screen, job.group, recalibrate=options.recalibrate)
    return Ours(model, name, planner=planner, copy=options.copy)


def _settings(job: Job, file: Path | None, prompts: list[Prompt] | None) -> dict[str, Any]:
    """What was asked for, ready for JSON."""
    options, ranks = job.options, job.group.ranks
    settings = {
        name: [str(part) for part in value] if name == "other_drafter" else value
        for name, value in vars(options).items()
        if name not in ("json", "csv", "output", "no_plots", "prompts", "report")
    }
    settings["model"] = options.path
    if ranks is not None:
        settings["processes"] = ranks.size
    if file is not None:
        settings["prompts"] = str(file)
    if prompts is not None:
        settings["answered_prompts"] = len(prompts)
    return settings
