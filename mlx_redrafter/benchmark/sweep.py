"""The paper's trade-off analysis: beam width x length x temperature x precision.

The paper (arXiv 2403.09919) looks at how its gain depends on the beam; each point here is one shape
at one temperature and precision, measured against plain decoding that takes turns with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..drafting.shape import BeamShape
from ..engine.model import SpeculativeModel
from ..errors import RedrafterError
from .agreement import compare
from .contestants import DRAFTED, PLAIN, Ours, Task
from .environment import Environment
from .measuring import Spread, measure, summarise
from .prompts import Prompt
from .writing import FORMAT


@dataclass(frozen=True)
class Grid:
    """What a sweep goes through; the last named varies fastest.

    Attributes:
        precisions: See :data:`names.PRECISIONS`.
        temperatures: 0 is greedy.
        widths: Beam widths.
        lengths: Beam lengths.
        node_budget: Candidates verified at most; None verifies all that the beams opened.
    """

    precisions: tuple[str, ...]
    temperatures: tuple[float, ...]
    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    node_budget: int | None = None

    def __len__(self) -> int:
        """Number of points."""
        return len(self.precisions) * len(self.temperatures) * len(self.shapes)

    @property
    def shapes(self) -> list[BeamShape]:
        """All shapes.

        Raises:
            RedrafterError: If one is out of range.
        """
        pairs = product(self.widths, self.lengths)
        return [BeamShape(width, length, self.node_budget) for width, length in pairs]


@dataclass(frozen=True)
class Point:
    """One shape at one temperature and precision.

    Attributes:
        precision, temperature: Where.
        shape: What was drafted.
        tokens_per_step: Mean over all answers.
        tokens_per_second: Drafted decoding, whole answers.
        plain_tokens_per_second: Plain decoding between the drafted answers.
        ratio: Drafted over plain, of each repeat.
        acceptance_by_depth: Share of drafts accepted at depth 1, 2, ...
        identical: Prompts whose drafted answer was plain decoding's.
        prompts: Prompts in all.
    """

    precision: str
    temperature: float
    shape: BeamShape
    tokens_per_step: float
    tokens_per_second: Spread
    plain_tokens_per_second: Spread
    ratio: Spread
    acceptance_by_depth: tuple[float, ...]
    identical: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **self.to_row(),
            "tokens_per_second": self.tokens_per_second.to_dict(),
            "plain_tokens_per_second": self.plain_tokens_per_second.to_dict(),
            "ratio": self.ratio.to_dict(),
            "acceptance_by_depth": list(self.acceptance_by_depth),
        }

    def to_row(self) -> dict[str, Any]:
        """The point as a row of a table."""
        return {
            "precision": self.precision,
            "temperature": self.temperature,
            "beam_width": self.shape.width,
            "beam_length": self.shape.length,
            "nodes": self.shape.nodes,
            "tokens_per_step": self.tokens_per_step,
            "tokens_per_second": self.tokens_per_second.median,
            "plain_tokens_per_second": self.plain_tokens_per_second.median,
            "ratio": self.ratio.median,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "identical": self.identical,
            "prompts": self.prompts,
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep as far as it went.

    Attributes:
        environment: Where.
        settings: What was asked for, ready for JSON.
        points: What was measured, in the grid's order.
        planned: Points that the grid has.
    """

    environment: Environment
    settings: Mapping[str, Any]
    points: tuple[Point, ...]
    planned: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "kind": "sweep",
            "environment": self.environment.to_dict(),
            "settings": dict(self.settings),
            "complete": len(self.points) == self.planned,
            "points": [point.to_dict() for point in self.points],
        }

    def rows(self) -> list[dict[str, Any]]:
        """A table of the points."""
        return [point.to_row() for point in self.points]

    def best(self) -> Point | None:
        """The point that gained most over plain decoding, None before the first."""
        return max(self.points, key=lambda point: point.ratio.median, default=None)


def check_shapes(model: SpeculativeModel, shapes: Sequence[BeamShape]) -> None:
    """Refuse what cannot be drafted before anything is measured.

    Raises:
        RedrafterError: If there is no drafter, or it knows fewer tokens than a beam is wide.
    """
    if model.head is None:
        raise RedrafterError(
            "This model has no drafter, so there is nothing to sweep: pass a bundle, or --drafter."
        )
    known = model.head.config.head_size
    widest = max(shape.width for shape in shapes)
    if widest > known:
        raise RedrafterError(
            f"beam width {widest} is asked for, but the drafter knows only {known} tokens: "
            "choose smaller widths."
        )


def sweep_shapes(
    model: SpeculativeModel,
    precision: str,
    prompts: Sequence[Prompt],
    task: Task,
    shapes: Sequence[BeamShape],
    repeats: int,
) -> Iterator[Point]:
    """Measure shapes one after the other, each against plain decoding in turns.

    Args:
        model: Loaded at ``precision``, with a drafter.
        precision: What to call that.
        prompts: What to answer.
        task: How; its temperature is the points'.
        shapes: What to draft.
        repeats: Times that each shape and plain decoding answer all prompts.

    Yields:
        A point when it is measured.
    """
    for shape in shapes:
        contestants = (Ours(model), Ours(model, DRAFTED, shape=shape))
        rounds = list(measure(contestants, prompts, task, repeats))
        plain, drafted = summarise(contestants, rounds)
        agreement = compare(contestants[1], PLAIN, prompts, rounds, model, task.sampling)
        assert drafted.stats is not None
        yield Point(
            precision=precision,
            temperature=task.sampling.temperature,
            shape=shape,
            tokens_per_step=drafted.stats.tokens_per_step,
            tokens_per_second=drafted.tokens_per_second,
            plain_tokens_per_second=plain.tokens_per_second,
            ratio=drafted.ratios[PLAIN],
            acceptance_by_depth=tuple(drafted.stats.acceptance_by_depth),
            identical=agreement.identical,
            prompts=agreement.prompts,
        )
