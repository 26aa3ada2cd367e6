"""The command line of ``python -m mlx_redrafter.benchmark``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..entry import INTERRUPTED, SUCCESS, command_line
from ..opening import prepare
from ..together import Together, together
from .benchmark_flags import NAME, parse_benchmark_options

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from rich.console import Console

    from ...benchmark.comparison import Comparison
    from ...benchmark.contestants import Contestant, Task
    from ...benchmark.environment import Environment
    from ...benchmark.measuring import Round
    from ...benchmark.prompts import Conversation, Prompt
    from ...benchmark.sweep import Grid, Point
    from ...benchmark.writing import Report
    from ...engine.model import SpeculativeModel

Progress = Callable[[int, int], None]


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Measure, show and write.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0; 130 after an interruption that left something to show.
    """
    command, options = parse_benchmark_options(arguments)
    # After the flags are read, so that --help and slips cost no loading time.
    from ..output import make_console
    from ..quiet import quiet_libraries

    quiet_libraries()
    prepare(options.path, options.revision)
    with together() as group:
        quiet = not group.leads
        console, screen = make_console(quiet=quiet), make_console(errors=True, quiet=quiet)
        job = _Job(command, options, arguments, console, screen, group)
        try:
            return {"run": _run, "sweep": _sweep, "cost": _cost}[command](job)
        except KeyboardInterrupt:
            said = "interrupted before anything was measured." if group.leads else ""
            raise KeyboardInterrupt(said) from None


@dataclass(frozen=True)
class _Job:
    """One command as it was asked for.

    Attributes:
        command: Its name.
        options: The flags.
        arguments: The command line.
        console: Where results are shown.
        screen: Where progress is shown.
        group: The processes that run it.
    """

    command: str
    options: Any
    arguments: Sequence[str]
    console: Console
    screen: Console
    group: Together

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""
        from ...text.sharding import fail_together

        with fail_together(self.group.ranks):
            if self.group.leads:
                self._check_writable()

    def _check_writable(self) -> None:
        from ...benchmark.plots import check_matplotlib
        from ...benchmark.writing import check_writable

        paths = [self.options.json, self.options.csv, getattr(self.options, "report", None)]
        if self.options.output is not None:
            stem = self.options.output / self.command
            paths += map(stem.with_suffix, (".json", ".csv", ".png"))
        check_writable(*paths)
        if self.options.output is not None and not self.options.no_plots:
            check_matplotlib()

    def environment(self) -> Environment:
        """The circumstances, as they are now."""
        from ...benchmark.environment import environment

        return environment(self.arguments)

    def write(self, report: Report) -> None:
        """Write a report as JSON and CSV to wherever they are wanted."""
        from ...benchmark.writing import write_report

        options = self.options
        if not self.group.leads:
            return
        write_report(report, options.json, options.csv)
        if options.output is not None:
            stem = options.output / self.command
            write_report(report, stem.with_suffix(".json"), stem.with_suffix(".csv"))

    def draw(self, plot: Callable[[Any, Path], list[Path]], report: Any, place: str = "") -> None:
        """Draw the pictures of a report, where they are wanted, in a ``place`` below."""
        wanted = self.options.output is not None and not self.options.no_plots
        if wanted and self.group.leads:
            plot(report, self.options.output / place)

    @contextmanager
    def progress(self, words: str) -> Iterator[Progress]:
        """A bar on the error stream while the block runs."""
        from rich.progress import Progress, TimeRemainingColumn

        from ..bars import WordsColumn, bar_column

        columns = (WordsColumn(words), bar_column(self.screen), TimeRemainingColumn())
        with Progress(*columns, console=self.screen, transient=True) as bar:
            task = bar.add_task("", total=None)

            def note(done: int, total: int) -> None:
                self.group.check()
                bar.update(task, completed=done, total=total)

            yield note


def _run(job: _Job) -> int:
    """Compare contestants."""
    from ...benchmark.comparison import Comparisons, conclude
    from ...benchmark.page import results_page
    from ...benchmark.plots import plot_comparison
    from ...benchmark.precision import load_at
    from ...benchmark.writing import write_text
    from .benchmark_view import run_report

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
        prompts = _prompts(job, conversations, model, task)
        rounds, interrupted = _rounds(job, contestants, prompts, task)
        if not rounds and not done:
            raise KeyboardInterrupt
        if rounds:
            settings = {**_settings(job, file, prompts), "sampling": asdict(task.sampling)}
            settings["temperature"] = temperature
            settings["completed_repeats"] = len(rounds)
            done.append(conclude(environment, settings, contestants, prompts, rounds, model, task))
            job.write(done[0] if len(done) == 1 else Comparisons(done))
        if interrupted:
            break
    for comparison in done:
        place = f"temperature-{comparison.temperature:g}" if len(done) > 1 else ""
        job.draw(plot_comparison, comparison, place)
    # Whoever reads stdout may leave before the end, and the page's disk may be full.
    try:
        if options.report is not None and job.group.leads:
            write_text(options.report, results_page(done, model.name))
    finally:
        for comparison in done:
            job.console.print(run_report(comparison, model.name))
    return INTERRUPTED if interrupted else SUCCESS


def _rounds(
    job: _Job, contestants: Sequence[Contestant], prompts: list[Prompt], task: Task
) -> tuple[list[Round], bool]:
    """Complete repeats, and whether Ctrl-C ended them."""
    from ...benchmark.measuring import measure

    rounds: list[Round] = []
    words = f"answering at temperature {task.sampling.temperature:g}"
    try:
        with job.progress(words) as progress:
            for answers in measure(contestants, prompts, task, job.options.repeats, progress):
                rounds.append(answers)
    except KeyboardInterrupt:
        return rounds, True
    return rounds, False


def _sweep(job: _Job) -> int:
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
                sweep = Sweep(environment, settings, (*sweep.points, point), len(grid))
                job.write(sweep)
    except KeyboardInterrupt:
        if not sweep.points:
            raise
        interrupted = True
    job.draw(plot_sweep, sweep)
    job.console.print(sweep_report(sweep))
    return INTERRUPTED if interrupted else SUCCESS


def _points(
    job: _Job, grid: Grid, conversations: list[Conversation]
) -> Generator[Point, None, None]:
    """Every point of the grid; a precision is loaded when it is its turn."""
    from ...benchmark.precision import check_precision, release_memory

    for precision in grid.precisions:  # before hours are spent
        check_precision(job.options.path, precision, job.options.revision)
    for index, precision in enumerate(grid.precisions):
        yield from _points_at(job, grid, conversations, precision, index)
        release_memory()  # two models may be more than the machine holds


def _points_at(
    job: _Job, grid: Grid, conversations: list[Conversation], precision: str, index: int
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


def _cost(job: _Job) -> int:
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
    job.write(curve)
    job.draw(plot_costs, curve)
    job.console.print(cost_report(curve, model.name))
    return SUCCESS


def _conversations(job: _Job) -> tuple[Path, list[Conversation]]:
    """The prompts file, and what is in it; of several processes rank 0 reads it."""
    from ...benchmark.prompts import Conversation, own_prompts, read_conversations

    options = job.options

    def read() -> tuple[str, list[dict[str, Any]]]:
        file = options.prompts or own_prompts(Path(options.path))
        return str(file), [asdict(one) for one in read_conversations(file, options.limit)]

    file, rows = job.group.read(read)
    return Path(file), [Conversation.from_dict(row) for row in rows]


def _prompts(
    job: _Job, conversations: list[Conversation], model: SpeculativeModel, task: Task
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
    job: _Job, model: SpeculativeModel, tokenizer: TokenizerWrapper
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
    from ...planning.cost_store import load_costs
    from ...planning.headless_planner import HeadlessPlanner

    options = job.options
    contestants: list[Contestant] = [MlxLm(model), Ours(model)]
    if model.drafter is not None:
        contestants.append(_drafting(job, model, DRAFTED))
    if options.copy and model.target.refusal is None:
        name = f"{model.name}, no drafter"
        alone = SpeculativeModel(model.target, None, name, ranks=model.ranks)
        with job.progress("measuring what forwards cost") as progress:
            costs = load_costs(alone, recalibrate=options.recalibrate, progress=progress)
        contestants.append(Ours(alone, COPIED, planner=HeadlessPlanner(lambda: costs), copy=True))
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


def _drafting(job: _Job, model: SpeculativeModel, name: str) -> Contestant:
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


def _settings(job: _Job, file: Path | None, prompts: list[Prompt] | None) -> dict[str, Any]:
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
