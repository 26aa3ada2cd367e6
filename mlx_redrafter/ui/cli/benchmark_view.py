"""Benchmark reports as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ...benchmark.categories import ALL, category_table
from ...system.files import size_words
from ..fitting import Figures
from .plan_view import shape_words

if TYPE_CHECKING:
    from ...benchmark.agreement import Agreement, Difference
    from ...benchmark.categories import CategoryTable
    from ...benchmark.comparison import Comparison
    from ...benchmark.curve import CostCurve
    from ...benchmark.environment import Environment
    from ...benchmark.measuring import Result, Spread
    from ...benchmark.sweep import Point, Sweep

SHOWN_DIFFERENCES = 3
# Cells that a name is folded to where there are few.
FOLDED = len("two models, ")


def run_report(comparison: Comparison, model: str) -> RenderableType:
    """The comparison: two tables, differences, circumstances."""
    title = (
        f"{model}, temperature {comparison.settings['sampling']['temperature']:g}: "
        f"{len(comparison.prompts)} prompts, {len(comparison.rounds)} repeats"
    )
    speeds = _table("", "tokens/s", "quartiles", "× mlx-lm", "× plain", "text as plain's")
    steps = _table("", "tokens/step", "accepted by depth", "first token", "memory")
    for result in comparison.results:
        speeds.add_row(*_speed_cells(result, comparison.agreements.get(result.name)))
        steps.add_row(*_step_cells(result))
    parts: list[RenderableType] = [Text(title, style="bold"), speeds, Text(), steps, Text()]
    categories = category_table(comparison)
    if len(categories.lines) > 1:
        parts += [_categories(categories), Text()]
    parts += [Text(line) for line in _remarks(comparison)]
    return Group(*parts, Text(), circumstances(comparison.environment))


def sweep_report(sweep: Sweep) -> RenderableType:
    """The sweep: one table for each precision and temperature, and the best shape."""
    parts: list[RenderableType] = []
    for place in dict.fromkeys((point.precision, point.temperature) for point in sweep.points):
        here = [p for p in sweep.points if (p.precision, p.temperature) == place]
        parts += [_grid(here), Text()]
    best = sweep.best()
    if best is not None:
        parts.append(Text(_best_words(best)))
    if len(sweep.points) < sweep.planned:
        parts.append(Text(f"Interrupted after {len(sweep.points)} of {sweep.planned} points."))
    return Group(*parts, Text(), circumstances(sweep.environment))


def cost_report(curve: CostCurve, model: str) -> RenderableType:
    """T(n) as a table: milliseconds after each context, and what it takes to break even."""
    costs = curve.costs
    table = _table("tokens")
    for context in costs.contexts:
        table.add_column(f"ms behind {context:,}")
        table.add_column("to break even")
    for column, size in enumerate(costs.sizes):
        cells = [str(size)]
        for row, plain in zip(costs.verify, costs.plain, strict=True):
            cells += [f"{1000 * row[column]:.2f}", f"{row[column] / plain:.2f}"]
        table.add_row(*cells)
    pairs = zip(costs.contexts, costs.plain, strict=True)
    plain_words = ", ".join(f"{1000 * s:.2f} ms behind {context:,}" for context, s in pairs)
    lines = [
        f"A token of plain decoding takes {plain_words}.",
        "To break even: tokens per step at which a forward of that size pays, drafting not "
        "counted.",
    ]
    if costs.draft:
        drafts = sorted(costs.draft.items())
        levels = ", ".join(f"{1000 * s:.2f} ms at width {width}" for width, s in drafts)
        lines.append(f"A drafted level takes {levels}.")
    if costs.doubtful:
        lines.append("These times contradicted each other, since the machine was busy.")
    title = Text(f"{model}: a forward over n tokens", style="bold")
    words = [Text(line) for line in lines]
    return Group(title, table, Text(), *words, Text(), circumstances(curve.environment))


def circumstances(environment: Environment) -> Text:
    """Where it was measured, and with what command."""
    facts = environment.facts()
    named = (f"{name}: {facts[name]}" for name in ("memory", "power"))
    machine = ", ".join((facts["processor"], facts["device"], facts["system"], *named))
    lines = (facts["command"], machine, facts["versions"])
    return Text("\n".join((*lines, facts["date"])), style="dim")


def _categories(categories: CategoryTable) -> Figures:
    """What the contestants make of each category, all of them in bold."""
    table = _table("", *categories.heads[1:])
    for line in categories.lines:
        table.add_row(*line, style="bold" if line[0] == ALL else "")
    return table


def _table(*columns: str) -> Figures:
    """An empty table of which the first column says what a row is of."""
    return Figures(*columns, fold=FOLDED, box=None)


def _speed_cells(result: Result, agreement: Agreement | None) -> list[str]:
    speed = result.tokens_per_second
    return [
        result.name,
        f"{speed.median:.1f}",
        f"{speed.low:.1f}-{speed.high:.1f}",
        _ratio(result.ratios.get("mlx-lm")),
        _ratio(result.ratios.get("plain")),
        _agreement_words(agreement),
    ]


def _step_cells(result: Result) -> list[str]:
    stats = result.stats
    drafted = stats is not None and stats.drafted
    return [
        result.name,
        f"{stats.tokens_per_step:.2f}" if stats and drafted else "",
        " ".join(f"{rate:.2f}" for rate in stats.acceptance_by_depth) if stats and drafted else "",
        f"{1000 * result.first_token_seconds.median:.0f} ms",
        size_words(result.memory_bytes),
    ]


def _ratio(spread: Spread | None) -> str:
    return f"{spread.median:.2f}" if spread else ""


def _agreement_words(agreement: Agreement | None) -> str:
    if agreement is None:
        return ""
    if not agreement.comparable:
        return "other draws"
    return f"{agreement.identical} of {agreement.prompts} equal"


def _remarks(comparison: Comparison) -> list[str]:
    """What the table has no room for."""
    lines = []
    for result in comparison.results:
        lines.append(f"{result.name}: {result.description}.")
    two = [result.name for result in comparison.results if result.name.startswith("two models")]
    best = comparison.best(two)
    if best is not None:
        ratio = best.ratios["mlx-lm"].median
        lines.append(f"Best of the two-model runs: {best.name}, {ratio:.2f} × mlx-lm.")
    for name, agreement in comparison.agreements.items():
        if not agreement.comparable:
            lines.append(
                f"{name} draws its samples differently from plain decoding here, so their texts "
                "cannot be compared token for token."
            )
        names = [prompt.name for prompt in comparison.prompts]
        lines += _difference_lines(name, agreement.differences, names)
    return lines


def _difference_lines(
    name: str, differences: Sequence[Difference], prompts: Sequence[str]
) -> list[str]:
    lines = [
        f"{name} parts from plain on {prompts[difference.prompt]} after "
        f"{difference.position} tokens, where the two best scores are {difference.gap:.3g} apart "
        f"(the best is {difference.best:.3g})."
        for difference in differences[:SHOWN_DIFFERENCES]
    ]
    more = len(differences) - SHOWN_DIFFERENCES
    return [*lines, f"{name} parts from plain on {more} more."] if more > 0 else lines


def _grid(points: Sequence[Point]) -> RenderableType:
    """Width against length; in each cell tokens per step and the speed over plain decoding."""
    first = points[0]
    plain = sorted(point.plain_tokens_per_second.median for point in points)[len(points) // 2]
    title = (
        f"{first.precision}, temperature {first.temperature:g}: tokens per step and × plain "
        f"({plain:.1f} tokens/s)"
    )
    lengths = sorted({point.shape.length for point in points})
    table = _table("width", *(f"length {length}" for length in lengths))
    best = max(points, key=lambda point: point.ratio.median)
    for width in sorted({point.shape.width for point in points}):
        cells = {p.shape.length: p for p in points if p.shape.width == width}
        texts = [_cell(cells.get(length), best) for length in lengths]
        table.add_row(str(width), *texts)
    return Group(Text(title, style="bold"), table)


def _cell(point: Point | None, best: Point) -> Text:
    if point is None:
        return Text("")
    style = "bold" if point == best else ""
    return Text(f"{point.tokens_per_step:.2f} {point.ratio.median:.2f}×", style=style)


def _best_words(point: Point) -> str:
    equal = f"{point.identical} of {point.prompts} texts equal plain decoding's"
    return (
        f"Best: {shape_words(point.shape)} at {point.precision}, temperature "
        f"{point.temperature:g}: {point.ratio.median:.2f} × plain decoding of the same precision, "
        f"{point.tokens_per_step:.2f} tokens per step; {equal}."
    )
