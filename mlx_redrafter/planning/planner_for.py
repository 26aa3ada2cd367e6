"""Which planner a model gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..engine.model import SpeculativeModel
from . import cost_store
from .headless_planner import HeadlessPlanner
from .planner import Planner


def planner_for(
    model: SpeculativeModel,
    *,
    at_once: bool = True,
    recalibrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Planner | HeadlessPlanner | None:
    """The planner of a draft head's beams; without a drafter, that of copies.

    Args:
        model: The model.
        at_once: Whether the machine is measured here for copies too, where it is not known yet;
            else that is left until there is something to copy. Beams need it here.
        recalibrate: Measure again.
        progress: Called with (measurements done, measurements to do).

    Returns:
        The planner; None where there is nothing to plan: the drafter is a source of its own, or
        the target cannot verify copies.

    Raises:
        RedrafterError: If an argument is of another kind.
    """
    if model.head is not None:
        return Planner.for_model(model, recalibrate=recalibrate, progress=progress)
    if model.drafter is not None or model.target.refusal is not None:
        return None
    measure = partial(cost_store.load_costs, model, recalibrate=recalibrate, progress=progress)
    if at_once:
        costs = measure()
        measure = partial(lambda: costs)
    return HeadlessPlanner(measure, partial(cost_store.measure_there, model))
