"""A comparison by category of its prompts, as EAGLE's and Spec-Bench's tables have it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .comparison import Comparison
from .contestants import MLX_LM, Answer
from .measuring import speed

ALL = "all"
# MT-bench's own categories, which Spec-Bench's table has as one.
MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)
MULTI_TURN = "multi-turn conversation"


@dataclass(frozen=True)
class CategoryRow:
    """One contestant on the prompts of one category.

    Attributes:
        category: Its name; ``ALL`` for all prompts.
        contestant: The contestant's name.
        prompts: How many there are.
        tokens_per_step: Mean accepted length: tokens per target forward, the target's own token
            included; None where there are no steps to count.
        tokens_per_second: Whole answers, prefill included; the median over repeats.
        speedup: Over mlx-lm in the same repeat; the median. None where mlx-lm takes no part.
    """

    category: str
    contestant: str
    prompts: int
    tokens_per_step: float | None
    tokens_per_second: float
    speedup: float | None


@dataclass(frozen=True)
class CategoryTable:
    """The rows of a comparison as a table to draw: a line a category, two columns a contestant.

    Attributes:
        heads: Of all columns; the first is of categories.
        lines: Cells of every category, as many as heads; of what is not known, empty.
    """

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def categories_of(names: Sequence[str]) -> list[str]:
    """What to group prompts by: each prompt's category, MT-bench's as one beside others'.

    Args:
        names: Categories of the prompts, in their order.
    """
    mixed = bool(MT_BENCH & set(names)) and bool(set(names) - MT_BENCH)
    return [MULTI_TURN if mixed and name in MT_BENCH else name for name in names]


def by_category(comparison: Comparison) -> list[CategoryRow]:
    """Rows of every category and of all prompts, for every contestant; at least one repeat."""
    groups = categories_of([prompt.category for prompt in comparison.prompts])
    named = [name for name in dict.fromkeys(groups) if name]
    rows = []
    for category in [*named, ALL] if len(named) > 1 else [ALL]:
        chosen = [i for i, group in enumerate(groups) if category in (group, ALL)]
        rows += [_row(comparison, result.name, category, chosen) for result in comparison.results]
    return rows


def category_table(comparison: Comparison) -> CategoryTable:
    """Mean accepted length and speed-up by category, as the field's tables have them.

    mlx-lm, which counts no steps and is what speed is compared with, has no columns.
    """
    rows = by_category(comparison)
    names = [name for name in dict.fromkeys(row.contestant for row in rows) if name != MLX_LM]
    heads = [f"{name}: {what}" for name in names for what in ("tokens/step", f"× {MLX_LM}")]
    lines = []
    for category in dict.fromkeys(row.category for row in rows):
        own = {row.contestant: row for row in rows if row.category == category}
        values = [value for n in names for value in (own[n].tokens_per_step, own[n].speedup)]
        cells = ("" if value is None else f"{value:.2f}" for value in values)
        lines.append((category, str(next(iter(own.values())).prompts), *cells))
    return CategoryTable(("category", "prompts", *heads), tuple(lines))


def _row(
    comparison: Comparison, contestant: str, category: str, chosen: Sequence[int]
) -> CategoryRow:
    def answers(name: str, repeat: int) -> list[Answer]:
        return [comparison.rounds[repeat][name][index] for index in chosen]

    repeats = range(len(comparison.rounds))
    speeds = [speed(answers(contestant, repeat)) for repeat in repeats]
    ratios = None
    if MLX_LM in comparison.rounds[0]:
        ratios = [speeds[r] / speed(answers(MLX_LM, r)) for r in repeats]
    stats = [a.stats for r in repeats for a in answers(contestant, r) if a.stats is not None]
    steps = sum(s.steps for s in stats)
    return CategoryRow(
        category,
        contestant,
        len(chosen),
        sum(s.tokens for s in stats) / steps if steps else None,
        statistics.median(speeds),
        statistics.median(ratios) if ratios is not None else None,
    )
