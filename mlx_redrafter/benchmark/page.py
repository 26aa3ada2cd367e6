"""A comparison as a page of Markdown: to attach to a bug report, or for a page of results."""

from __future__ import annotations

from collections.abc import Sequence

from .categories import ALL, CategoryTable, category_table
from .comparison import Comparison
from .contestants import PLAIN
from .environment import Environment


def results_page(comparisons: Sequence[Comparison], model: str) -> str:
    """The page.

    Args:
        comparisons: Of the same model and prompts, one for each temperature; at least one.
        model: The model's name.

    Returns:
        Markdown: what was measured, where, by which command, and a table for each temperature.
    """
    first = comparisons[0]
    parts = [f"# {model}", _setting(first), _circumstances(first.environment)]
    for comparison in comparisons:
        temperature = comparison.settings["sampling"]["temperature"]
        parts.append(f"## Temperature {temperature:g}")
        parts.append(_table(category_table(comparison)))
        parts += _texts(comparison)
    parts.append(
        "Tokens per step is the mean accepted length: tokens of text per forward of the target, "
        "its own token included. Speed-up is tokens per second over mlx-lm's in the same repeat, "
        "prefill included; medians over repeats."
    )
    return "\n\n".join(parts) + "\n"


def _setting(comparison: Comparison) -> str:
    settings = comparison.settings
    shape = [settings.get(name) for name in ("beam_width", "beam_length", "node_budget")]
    beam = "shapes planned" if shape == [None] * 3 else f"width, length, nodes {shape}"
    return (
        f"{len(comparison.prompts)} prompts of `{_file(settings.get('prompts'))}`, at most "
        f"{settings['max_tokens']} tokens each, {len(comparison.rounds)} repeats, precision "
        f"{settings['precision']}, {beam}."
    )


def _file(path: object) -> str:
    """A file's own name; its directory is nobody's business."""
    return str(path).rpartition("/")[2] if path else "-"


def _circumstances(environment: Environment) -> str:
    facts = environment.facts()
    rows = facts | {"command": f"`{facts['command']}`"}
    return "| | |\n|---|---|\n" + "\n".join(f"| {k} | {_cell(v)} |" for k, v in rows.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(table: CategoryTable) -> str:
    lines = [_line(table.heads), f"|{'---|' * len(table.heads)}"]
    for category, *cells in table.lines:
        shown = f"**{category}**" if category == ALL else category
        lines.append(_line((shown, *cells)))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _texts(comparison: Comparison) -> list[str]:
    told = []
    for name, agreement in comparison.agreements.items():
        if agreement.comparable:
            told.append(
                f"{name}: {agreement.identical} of {agreement.prompts} texts equal {PLAIN}'s."
            )
        else:
            told.append(f"{name}: draws its samples differently from {PLAIN}.")
    return [" ".join(told)] if told else []
