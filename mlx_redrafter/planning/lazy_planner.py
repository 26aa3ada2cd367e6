"""A planner that is not made, and the machine not measured, before a text wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from ..tree import HostTree
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

    def begin(self) -> None:
        """See :meth:`Planner.begin`."""
        if self._made is not None:
            self._made.begin()

    @property
    def drafts_ahead(self) -> bool:
        """See :class:`Planner`."""
        return self.planner.drafts_ahead

    def num_nodes_to_verify(self, shape: BeamShape, tree: HostTree, context: int) -> int:
        """See :meth:`Planner.worth`."""
        return self.planner.num_nodes_to_verify(shape, tree, context)

    def next_shape(self, context: int) -> BeamShape | None:
        """See :meth:`Planner.next_shape`."""
        return self.planner.next_shape(context)

    def observe(
        self, shape: BeamShape | None, records: Sequence[StepRecord], seconds: float, context: int
    ) -> None:
        """See :meth:`Planner.observe`."""
        self.planner.observe(shape, records, seconds, context)
