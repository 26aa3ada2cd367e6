"""The cost curve T(n): seconds of a forward over n tokens after several contexts, as a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.model import SpeculativeModel
from ..errors import RedrafterError
from ..planning.calibration import SIZES, calibrate
from ..planning.costs import CostModel
from .environment import Environment
from .writing import FORMAT

CONTEXTS = (0, 1024, 8192)


@dataclass(frozen=True)
class CostCurve:
    """What steps cost.

    Attributes:
        environment: Where.
        settings: What was asked for, ready for JSON.
        costs: Seconds.
    """

    environment: Environment
    settings: Mapping[str, Any]
    costs: CostModel

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "kind": "cost",
            "environment": self.environment.to_dict(),
            "settings": dict(self.settings),
            "costs": self.costs.to_dict(),
            "doubtful": self.costs.doubtful,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each context and size."""
        return [
            {
                "context": context,
                "tokens": size,
                "seconds": seconds,
                "times_one_token": seconds / row[0],
                "tokens_per_step_to_break_even": seconds / plain,
            }
            for context, row, plain in zip(
                self.costs.contexts, self.costs.verify, self.costs.plain, strict=True
            )
            for size, seconds in zip(self.costs.sizes, row, strict=True)
        ]


def fitting_contexts(
    model: SpeculativeModel, asked: Sequence[int] | None, *, beyond: bool = False
) -> tuple[int, ...]:
    """The contexts to measure, ascending.

    Args:
        model: The model.
        asked: Contexts; None for :data:`CONTEXTS`, as far as they fit.
        beyond: Allow more than the model was made for: its text would be nonsense there, but where
            positions are rotations a forward costs what it costs.

    Raises:
        RedrafterError: If an asked one does not fit.
    """
    limit = model.context_limit
    room = None if limit is None or beyond else limit - max(SIZES)
    if asked is None:
        found = tuple(context for context in CONTEXTS if room is None or context <= room)
        if not found:
            raise RedrafterError(
                f"This model was made for {limit} tokens, fewer than {max(SIZES)} at once: pass "
                "--beyond-limit to time it all the same."
            )
        return found
    for context in asked:
        if room is not None and context > room:
            raise RedrafterError(
                f"A context of {context} and {max(SIZES)} tokens behind it do not fit into this "
                f"model's {limit}: choose smaller --contexts, or pass --beyond-limit to time it "
                "all the same."
            )
    return tuple(sorted(set(asked)))


def measure_curve(
    environment: Environment,
    settings: Mapping[str, Any],
    model: SpeculativeModel,
    contexts: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> CostCurve:
    """Measure the model's costs after contexts.

    Raises:
        RedrafterError: If the model cannot verify drafts at all.
    """
    if model.target.refusal is not None:
        raise RedrafterError(f"Nothing to measure: {model.target.refusal}.")
    return CostCurve(environment, settings, calibrate(model, progress, contexts))
