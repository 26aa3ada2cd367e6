"""A planner that several threads may ask and tell at once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..cache.prompt_cache import PromptCache
from ..drafting.shape import BeamShape
from ..tree import HostTree
from .copy_planner import CopyPlanner
from .shape_planner import DraftCosts, ObservedStep, ShapePlanner


class SharedPlanner:
    """A ShapePlanner whose every member is asked by one thread at a time.

    What it answers may change between two questions, since other threads report their steps; that
    concerns how much is drafted, never what a text says.

    Args:
        planner: The planner.
        lock: The same for all who ask it; a thread may take it again.
    """

    def __init__(self, planner: ShapePlanner, lock: AbstractContextManager[Any]):
        self._planner = planner
        self._lock = lock

    @property
    def costs(self) -> DraftCosts:
        """What drafts cost."""
        with self._lock:
            return self._planner.costs

    @property
    def drafting_disabled(self) -> bool:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.drafting_disabled

    @property
    def probing(self) -> bool:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.probing

    def watches(self, shape: BeamShape | None) -> bool:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.watches(shape)

    @property
    def drafts_next(self) -> bool:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.drafts_next

    @property
    def copies(self) -> CopyPlanner:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.copies

    def for_batch(self, sequences: int) -> SharedPlanner:
        """See ShapePlanner."""
        with self._lock:
            planner = self._planner.for_batch(sequences)
        return self if planner is self._planner else SharedPlanner(planner, self._lock)

    def begin(self, cache: PromptCache, temperature: float) -> None:
        """See ShapePlanner."""
        with self._lock:
            self._planner.begin(cache, temperature)

    def next_shape(self, context: int) -> BeamShape | None:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.next_shape(context)

    def next_watch(self, context: int) -> BeamShape | None:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.next_watch(context)

    def guess_chances(self, tree: HostTree) -> list[float]:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.guess_chances(tree)

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.num_nodes_to_verify(tree, context)

    def observe(self, step: ObservedStep) -> None:
        """See ShapePlanner."""
        with self._lock:
            self._planner.observe(step)

    def price(self, step: ObservedStep) -> float | None:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.price(step)

    @property
    def patience(self) -> int:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.patience

    def reflect(self) -> None:
        """See ShapePlanner."""
        with self._lock:
            self._planner.reflect()
