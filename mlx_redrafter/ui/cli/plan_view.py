"""The planner's reasons as tables: what forwards cost, what each shape promises, the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ...planning.trials import PlannerState
from ..fitting import Figures, FirstThatFits

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...drafting.shape import BeamShape
    from ...planning.costs import CostModel
    from ...planning.forecast import Forecast
    from ...planning.planner import Planner
    from ...planning.prices import Made

    Part = Callable[[Forecast], tuple[str, ...]]  # cells of a row

# Of the shapes forecast so many are shown, the best ones, and those that were drafted.
SHOWN = 12
# Cells that a shape is folded to where there are few.
FOLDED = len("2 × 11,")
# Below the forecasts where one is larger than that of what is drafted.
DOUBTED = "What promises more than what is drafted does so by little, or few drafts have shown it."
# Headings of what is forecast and of what was measured; a space is where one may be broken.
PROMISED = ("tokens /step", "ms /step", "tokens /s", "× plain")
MADE = ("steps", "tokens /step", "tokens /s")


def plan_report(planner: Planner, context: int) -> RenderableType:
    """Costs, forecasts and the choice in a sentence, for a context of so many tokens."""
    costs, forecasts = cost_table(planner.costs), forecast_tables(planner, context)
    return Group(costs, Text(), forecasts, verdict(planner, context))


def shape_words(shape: BeamShape | None) -> str:
    """A beam shape in a few characters."""
    if shape is None:
        return "plain"
    budget = f", {shape.node_budget} nodes" if shape.node_budget else ""
    budget += f", {shape.max_leaves} paths" if shape.max_leaves else ""
    return f"{shape.width} × {shape.length}{budget}"


def cost_table(costs: CostModel) -> RenderableType:
    """Measured milliseconds of a forward over n tokens, and of drafting."""
    headings = [f"ms after {context:,}" for context in costs.contexts]
    title = "cost of checking n tokens at once"
    table = Figures("tokens", *headings, "× one token", title=title, box=None)
    for column, size in enumerate(costs.sizes):
        cells = [f"{1000 * row[column]:.2f}" for row in costs.verify]
        table.add_row(str(size), *cells, f"{costs.verify[0][column] / costs.verify[0][0]:.2f}")
    return Group(table, Text(_draft_words(costs), "table.caption"))


def _draft_words(costs: CostModel) -> str:
    """What drafts cost, and whether the times are to be believed."""
    words = ", ".join(f"{1000 * s:.2f} ms at width {w}" for w, s in sorted(costs.draft.items()))
    told = f"a drafted level costs {words}"
    if costs.draft_start:
        told += f"; a draft, {1000 * costs.draft_start:.2f} ms before the first level"
    if costs.around:
        told += f"; a step that checks drafts, {1000 * costs.around:.2f} ms around both"
    if costs.doubtful:
        told += (
            ". These times contradicted each other, since the machine was busy: they are used for "
            "now, corrected by what steps take, and measured again at the next start"
        )
    return told


def forecast_tables(planner: Planner, context: int) -> RenderableType:
    """What shapes promise and what they made, the planner's choice marked.

    Side by side where the terminal is wide enough, else one below the other.
    """
    title = f"after {context:,} tokens"
    forecasts = planner.forecasts(context)
    shown = _shown(planner, forecasts)
    drafted = [one for one in shown if planner.prices.made(one.shape).steps]
    plain = forecasts[0].tokens_per_second

    def promised(one: Forecast) -> tuple[str, ...]:
        return _promised(one, plain)

    def made(one: Forecast) -> tuple[str, ...]:
        return _measured(planner.prices.made(one.shape))

    def table(
        title: str, names: tuple[str, ...], rows: list[Forecast], *parts: Part, folded: bool = True
    ) -> Figures:
        names = tuple(n.replace(" ", "\n") if folded else n.replace(" /", "/") for n in names)
        drawn = Figures(
            "", "beam", *names, keys=2, fold=FOLDED, left=("beam",), title=title, box=None
        )
        for one in rows:
            chosen = one.shape == planner.choice
            cells = [cell for part in parts for cell in part(one)]
            mark, style = ("→", "bold") if chosen else ("", "")
            drawn.add_row(mark, shape_words(one.shape), *cells, style=style)
        return drawn

    both = (*PROMISED, f"measured: {MADE[0]}", *MADE[1:])
    apart = [table(title, PROMISED, shown, promised)]
    apart += [table("measured", MADE, drafted, made)] if drafted else []
    tables = FirstThatFits(
        table(title, both, shown, promised, made, folded=False),
        table(title, both, shown, promised, made),
        Group(*apart),
    )
    doubted = _promises_more(planner.choice, shown)
    return Group(tables, Text(DOUBTED, "table.caption")) if doubted else tables


def _promises_more(choice: BeamShape | None, shown: list[Forecast]) -> bool:
    """Whether a shape promises more than the one that is drafted."""
    speeds = {one.shape: one.tokens_per_second for one in shown}
    return choice in speeds and choice is not None and max(speeds.values()) > speeds[choice]


def _promised(forecast: Forecast, plain: float) -> tuple[str, ...]:
    return (
        f"{forecast.tokens_per_step:.2f}",
        f"{1000 * forecast.step_seconds:.2f}",
        f"{forecast.tokens_per_second:.1f}",
        f"{forecast.tokens_per_second / plain:.2f}",
    )


def _measured(made: Made) -> tuple[str, str, str]:
    if not made.steps:
        return "", "", ""
    rate = made.tokens / max(made.seconds, 1e-9)
    return f"{made.steps:,}", f"{made.tokens / made.steps:.2f}", f"{rate:.1f}"


def _shown(planner: Planner, forecasts: list[Forecast]) -> list[Forecast]:
    """Plain decoding, the best shapes, the choice and what was drafted, in their order."""
    plain, *drafted = forecasts
    best = sorted(drafted, key=lambda one: -one.tokens_per_second)[:SHOWN]
    kept = {one.shape for one in best} | {planner.choice}
    return [
        plain,
        *(one for one in drafted if one.shape in kept or planner.prices.made(one.shape).steps),
    ]


def verdict(planner: Planner, context: int) -> Text:
    """What is known, in sentences that the table beside it bears out."""
    plain, *drafted = planner.forecasts(context)
    if not planner.tries:
        return Text(
            "No draft could gain much here, so decoding is plain and none is tried: "
            f"{_several(planner, context)}."
        )
    if not drafted:
        return Text("Nothing has been drafted yet, so nothing is known of what drafts would gain.")
    words = _judgement(planner, context, plain, drafted)
    speed = planner.prices.speed(context)
    if speed is not None:
        gain = speed / plain.tokens_per_second
        words += f" Decoding as it goes, failures included, has made {gain:.2f} × plain of late."
    return Text(words)


def _judgement(planner: Planner, context: int, plain: Forecast, drafted: list[Forecast]) -> str:
    state = planner.state
    best = max(drafted, key=lambda forecast: forecast.tokens_per_second)
    gain = best.tokens_per_second / plain.tokens_per_second
    promise = f"the best shape ({shape_words(best.shape)}) promises {gain:.2f} × plain decoding"
    if state is PlannerState.DRAFTING:
        chosen = next((one for one in drafted if one.shape == planner.choice), best)
        gain = chosen.tokens_per_second / plain.tokens_per_second
        if gain < 1.0:
            return f"Drafts pay about as much as they cost here: {gain:.2f} × plain decoding."
        return (
            f"Drafting pays here: {shape_words(chosen.shape)} promises {gain:.2f} × plain decoding."
        )
    if state is PlannerState.TRYING:
        return f"Shapes are still being tried, so none is chosen yet: so far {promise}."
    if state is PlannerState.RESTING:
        return (
            "Drafts failed in this answer, so it goes on plainly, and they are tried again: over "
            f"all, {promise}."
        )
    if gain >= 1.0:
        return (
            "Drafts have failed in several answers so far, so decoding is plain and they are tried "
            f"again now and then; if they were accepted as lately, {promise}."
        )
    return (
        f"Drafting does not pay here so far, so decoding is plain: {_several(planner, context)}, "
        f"and {promise}. It is tried again now and then."
    )


def _several(planner: Planner, context: int) -> str:
    costs = planner.costs
    several = costs.verify_seconds(4, context) / costs.verify_seconds(1, context)
    return f"checking 4 tokens costs {several:.1f} × one token"
