"""A comparison as a page of Markdown: to attach to a bug report, or for a page of results."""

from __future__ import annotations

from collections.abc import Sequence

from .categories import ALL, CategoryRow, by_category
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
        parts.append(_table(by_category(comparison)))
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
    memory = environment.memory_bytes
    commit = f", commit {environment.commit}" if environment.commit else ""
    rows = {
        "command": f"`{environment.command}`",
        "date": environment.date,
        "versions": ", ".join(f"{k} {v}" for k, v in environment.versions.items()) + commit,
        "system": f"{environment.system}, {environment.architecture}",
        "processor": f"{environment.processor}, {environment.cores} cores",
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "not known",
        "device": f"{environment.device}; BLAS: {environment.blas}",
        "power": environment.power_source or "not known",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {k} | {_cell(v)} |" for k, v in rows.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(rows: Sequence[CategoryRow]) -> str:
    """A line for each category, two columns for each contestant."""
    names = list(dict.fromkeys(row.contestant for row in rows))
    heads = [f"{name}, {what}" for name in names for what in ("tokens/step", "× mlx-lm")]
    lines = [
        f"| category | prompts | {' | '.join(map(_cell, heads))} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for category in dict.fromkeys(row.category for row in rows):
        own = {row.contestant: row for row in rows if row.category == category}
        cells = [number(v) for n in names for v in (own[n].tokens_per_step, own[n].speedup)]
        shown = f"**{category}**" if category == ALL else _cell(category)
        lines.append(f"| {shown} | {own[names[0]].prompts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Two digits, nothing where there is none."""
    return "" if value is None else f"{value:.2f}"


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
