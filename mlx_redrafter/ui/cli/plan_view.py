"""The planner's reasons as tables: what forwards cost, what each shape promises, the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ...drafting.shape import BeamShape
    from ...planning.costs import CostModel
    from ...planning.planner import Planner


def plan_report(planner: Planner, context: int) -> RenderableType:
    """Costs, forecasts and the choice in a sentence, for a context of so many tokens."""
    costs, forecasts = cost_table(planner.costs), forecast_table(planner, context)
    return Group(costs, Text(), forecasts, verdict(planner, context))


def shape_words(shape: BeamShape | None) -> str:
    """A beam shape in a few characters."""
    if shape is None:
        return "plain"
    budget = f", {shape.node_budget} nodes" if shape.node_budget else ""
    return f"{shape.width} × {shape.length}{budget}"


def cost_table(costs: CostModel) -> Table:
    """Measured milliseconds of a forward over n tokens, and of drafting."""
    table = Table(title="cost of checking n tokens at once", title_justify="left", box=None)
    table.add_column("tokens", justify="right")
    for context in costs.contexts:
        table.add_column(f"ms behind {context:,}", justify="right")
    table.add_column("× one token", justify="right")
    for column, size in enumerate(costs.sizes):
        cells = [f"{1000 * row[column]:.2f}" for row in costs.verify]
        table.add_row(str(size), *cells, f"{costs.verify[0][column] / costs.verify[0][0]:.2f}")
    words = ", ".join(f"{1000 * s:.2f} ms at width {w}" for w, s in sorted(costs.draft.items()))
    table.caption = f"a drafted level costs {words}"
    if costs.draft_start:
        table.caption += f"; a draft, {1000 * costs.draft_start:.2f} ms before the first level"
    table.caption_justify = "left"
    return table


def forecast_table(planner: Planner, context: int) -> Table:
    """What each shape promises, the planner's choice marked."""
    forecasts = planner.forecasts(context)
    plain = forecasts[0].tokens_per_second
    table = Table(title=f"forecast behind {context:,} tokens", title_justify="left", box=None)
    for name in ("", "beam", "tokens/step", "ms/step", "tokens/s", "× plain"):
        table.add_column(name, justify="left" if name in ("", "beam") else "right")
    for forecast in forecasts:
        chosen = forecast.shape == planner.choice
        table.add_row(
            "→" if chosen else "",
            shape_words(forecast.shape),
            f"{forecast.tokens_per_step:.2f}",
            f"{1000 * forecast.step_seconds:.2f}",
            f"{forecast.tokens_per_second:.1f}",
            f"{forecast.tokens_per_second / plain:.2f}",
            style="bold" if chosen else None,
        )
    return table


def verdict(planner: Planner, context: int) -> Text:
    """The choice and its reason, in a sentence."""
    plain, *drafted = planner.forecasts(context)
    best = max(drafted, key=lambda forecast: forecast.tokens_per_second)
    gain = best.tokens_per_second / plain.tokens_per_second
    if planner.choice is not None:
        return Text(f"Drafting pays here: the best shape promises {gain:.2f} × plain decoding.")
    if planner.undecided:
        return Text(
            "Drafts are still being tried, so nothing is chosen yet: so far the best shape "
            f"({shape_words(best.shape)}) promises {gain:.2f} × plain decoding."
        )
    several = planner.costs.verify_seconds(4, context) / planner.costs.verify_seconds(1, context)
    return Text(
        f"Drafting does not pay here, so decoding is plain: checking 4 tokens costs {several:.1f} "
        f"× one token, and the best shape ({shape_words(best.shape)}) would yield "
        f"{best.tokens_per_step:.2f} tokens a step, {gain:.2f} × plain decoding."
    )
