"""Beam shapes worth considering on a machine: those that fill the steps of its cost curve.

What n tokens cost is a staircase that differs by chip: matrix kernels work in tiles of rows, so
that a forward over sixteen rows may cost no more than one over twelve, or less than one over one.
The steps are found in what was measured; every shape makes as many rows as were timed, since what
other numbers of rows cost need not lie in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..drafting.shape import BeamShape
from .costs import CostModel

# A larger size at this factor of the cost is as good as free.
SAME_STEP = 1.04
# On a slope without steps, sizes that are nearer than this are not told apart.
APART = 1.25
WIDTHS = (2, 3, 4, 8)
PATHS = (2, 3, 4)
LENGTHS = (1, 2, 3, 4, 5, 7, 11, 15)
# More rows are verified only where they are on the step that begins below.
MOST_ROWS = 32
# A beam may open this many times the nodes that are verified; what a node budget leaves out are the
# least likely.
OPENED = 3.0
# What a probe shows: long paths first, then wide ones.
PROBE_WIDTHS = (8, 4, 3, 2, 1)


def step_ends(sizes: Sequence[int], seconds: Sequence[float]) -> list[int]:
    """Sizes that end a step of a cost curve: no larger one costs as little.

    Args:
        sizes: Numbers of tokens, ascending.
        seconds: The cost of a forward over each.

    Returns:
        Some of ``sizes``, ascending; where the curve is a slope without steps, sizes well apart.
    """
    ends: list[int] = []
    least = float("inf")  # of the ends found so far
    for place in reversed(range(len(sizes))):
        if least <= SAME_STEP * seconds[place]:
            continue
        if ends and sizes[place] * APART > ends[0] and not _rises(sizes, seconds, place):
            continue
        ends.insert(0, sizes[place])
        least = min(least, seconds[place])
    above = [size for size in ends if size > MOST_ROWS]
    return [
        size
        for size in ends
        if 1 < size <= MOST_ROWS or (MOST_ROWS not in ends and size in above[:1])
    ]


def _rises(sizes: Sequence[int], seconds: Sequence[float], place: int) -> bool:
    """Whether the next size costs more than its share: a step begins there."""
    grown = seconds[place + 1] / seconds[place] - 1
    return grown > 1.2 * (sizes[place + 1] / sizes[place] - 1)


def candidate_shapes(costs: CostModel, *, chains: bool = False) -> tuple[BeamShape, ...]:
    """Chains and trees that fill the steps found at any of the contexts measured.

    Args:
        costs: What forwards cost here.
        chains: Whether only chains are verified.
    """
    tiles = sorted({end for row in costs.verify for end in step_ends(costs.sizes, row)})
    # Each token of a chain costs a drafted level, so a step need not be filled to be worth it.
    shapes = [BeamShape(1, size - 1) for size in costs.sizes if 2 <= size <= 1 + max(LENGTHS)]
    if chains:
        return tuple(shapes)
    for width in WIDTHS:
        for length in LENGTHS:
            shapes += [
                BeamShape(width, length, nodes)
                for nodes in _budgets(costs.sizes, tiles, width, length)
            ]
    # Where each path has a price, a long favourite path with a few nodes beside it is worth a look.
    narrow = [
        BeamShape(leaves, length, None, leaves)
        for leaves in PATHS
        for length in LENGTHS
        if costs.path_row and length > 1
    ]
    return (*shapes, *(shape for shape in narrow if 1 + shape.nodes in costs.sizes))


def _budgets(sizes: Sequence[int], tiles: Sequence[int], width: int, length: int) -> list[int]:
    """Node budgets of a beam: those that fill a step, or nearly all of a beam too small for one."""
    opened = width * length
    least = max(length, width, opened / OPENED)
    if least > MOST_ROWS:
        return []
    fitting = [end - 1 for end in tiles if least <= end - 1 <= opened]
    if length == 1:
        return [width] if 1 + width in sizes else []
    if not fitting:
        fitting = [size - 1 for size in sizes if least <= size - 1 <= opened and size <= MOST_ROWS][
            -1:
        ]
    return fitting


def probe_shapes(costs: CostModel, *, chains: bool = False) -> tuple[BeamShape, ...]:
    """Shapes that show what the candidates would yield, those that show most first.

    A tree holds what narrower, shorter and smaller ones would have drafted.
    """
    shapes = []
    for size in costs.sizes:
        for width in (1,) if chains else PROBE_WIDTHS:
            for length in LENGTHS:
                opened = width * length
                if size > 1 and length <= size - 1 <= opened <= 2 * OPENED * (size - 1):
                    shapes.append(BeamShape(width, length, None if width == 1 else size - 1))
    within = [shape for shape in shapes if shape.nodes < MOST_ROWS]
    return tuple(sorted(within, key=_shown, reverse=True))


def _shown(shape: BeamShape) -> float:
    return 2 * math.log2(1 + shape.length) + math.log2(shape.width) + math.log2(shape.nodes)


def covers(wide: BeamShape, narrow: BeamShape) -> bool:
    """Whether a tree of one shape holds what another would have drafted."""
    if wide.max_leaves is not None:
        narrow_enough = narrow.max_leaves is not None and narrow.max_leaves <= wide.max_leaves
        return narrow_enough and wide.length >= narrow.length and wide.nodes >= narrow.nodes
    return (
        wide.width >= narrow.width and wide.length >= narrow.length and wide.nodes >= narrow.nodes
    )
