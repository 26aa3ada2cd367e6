"""A planner that is not made, and the machine not measured, before a text wants it."""

from __future__ import annotations

from collections.abc import Callable

from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep
from ..tree import HostTree
from .copy_planner import CopyPlanner
from .costs import CostModel
from .planner import Planner


class PlannerOnDemand:
    """A planner that is made, and the machine measured, when the first text is decoded.

    Args:
        make: Makes the planner; called once.
    """

    def __init__(self, make: Callable[[], Planner]):
        self._make = make
        self._made: Planner | None = None

    @property
    def planner(self) -> Planner:
        """The planner itself."""
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def costs(self) -> CostModel:
        """See :class:`Planner`."""
        return self.planner.costs

    @property
    def drafting_disabled(self) -> bool:
        """See :class:`Planner`; False before anything was measured."""
        return self._made is not None and self._made.drafting_disabled

    def for_batch(self, texts: int) -> Planner:
        """See :meth:`Planner.for_batch`."""
        return self.planner.for_batch(texts)

    @property
    def probing(self) -> bool:
        """See :class:`Planner`."""
        return self.planner.probing

    @property
    def drafts_next(self) -> bool:
        """See :class:`Planner`."""
        return self.planner.drafts_next

    def num_nodes_to_verify(self, shape: BeamShape, tree: HostTree, context: int) -> int:
        """See :meth:`Planner.worth`."""
        return self.planner.num_nodes_to_verify(shape, tree, context)

    def next_shape(self, context: int) -> BeamShape | None:
        """See :meth:`Planner.next_shape`."""
        return self.planner.next_shape(context)

    def observe(self, step: ObservedStep) -> None:
        """See :meth:`Planner.observe`."""
        self.planner.observe(step)

    def price(self, step: ObservedStep) -> float | None:
        """See :meth:`Planner.price`."""
        return self.planner.price(step)

    @property
    def copies(self) -> CopyPlanner:
        """See :class:`Planner`."""
        return self.planner.copies

    def guess_chances(self, tree: HostTree) -> list[float]:
        """See :class:`Planner`."""
        return self.planner.guess_chances(tree)
