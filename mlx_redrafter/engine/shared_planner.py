"""A planner that several threads may ask and tell at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from ..cache.prompt_cache import PromptCache
from ..drafting.copy_memory import CopyMemory
from ..drafting.shape import BeamShape
from ..tree import HostTree
from .checks import checked_planner
from .copy_pricing import CopyPricing, CopyShare
from .planner_lock import PlannerLock
from .shape_planner import DraftCosts, ObservedStep, ShapePlanner, StepPlan


class SharedPlanner:
    """A ShapePlanner whose every member is asked by one thread at a time.

    Its plan may change between two looks at it, since other threads report their steps; that
    concerns how much is drafted, never what a text says.

    Args:
        planner: The planner.
        lock: The same for all who ask it; a thread may take it again.
    """

    def __init__(self, planner: ShapePlanner, lock: PlannerLock):
        self._planner = planner
        self._lock = lock
        self._for_batches: dict[int, SharedPlanner] = {}

    @property
    def costs(self) -> DraftCosts:
        """What drafts cost."""
        with self._lock:
            return self._planner.costs

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft of that shape."""
        return self.costs.draft_seconds(shape)

    @property
    def plan(self) -> StepPlan:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.plan

    @property
    def copied(self) -> CopyMemory:
        """See ShapePlanner."""
        return self._planner.copied

    @cached_property
    def copies(self) -> CopyPricing:
        """See ShapePlanner."""
        with self._lock:
            return _SharedPricing(self._planner.copies, self._lock)

    def for_batch(self, sequences: int) -> SharedPlanner:
        """See ShapePlanner."""
        with self._lock:
            planner = self._planner.for_batch(sequences)
            if planner is self._planner:
                return self
            known = self._for_batches.get(sequences)
            if known is None or known._planner is not planner:
                known = self._for_batches[sequences] = SharedPlanner(planner, self._lock)
            return known

    def begin(self, cache: PromptCache, temperature: float, *, among: bool = False) -> None:
        """See ShapePlanner."""
        with self._lock:
            self._planner.begin(cache, temperature, among=among)

    def if_free(self, tell: Callable[[], None]) -> None:
        """Tell it something, unless it is being asked, if by this thread: whoever has an abandoned
        text closed, such as the garbage collector, may hold what another thread that asks waits
        for, or do so in the midst of the planner's work.
        """
        with self._lock.if_free() as free:
            if free:
                tell()

    def plain_speed(self, context: int) -> float | None:
        """See ShapePlanner."""
        with self._lock:
            return self._planner.plain_speed(context)

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

    def reflect(self) -> None:
        """See ShapePlanner."""
        with self._lock:
            self._planner.reflect()


def shared(planner: ShapePlanner | None, lock: PlannerLock) -> SharedPlanner | None:
    """A planner as several threads may ask it; None where nobody plans.

    Raises:
        RedrafterError: If it does not plan.
    """
    checked = checked_planner(planner)
    return None if checked is None else SharedPlanner(checked, lock)


class _SharedPricing:
    """A CopyPricing that one thread asks at a time: it may measure when it is asked first."""

    def __init__(self, pricing: CopyPricing, lock: PlannerLock):
        self._pricing = pricing
        self._lock = lock

    def num_nodes(self, chances: Sequence[float], context: int) -> int:
        """See CopyPricing."""
        with self._lock:
            return self._pricing.num_nodes(chances, context)

    def waits_for_copies(self, first: float, after: Sequence[float], context: int) -> bool:
        """See CopyPricing."""
        with self._lock:
            return self._pricing.waits_for_copies(first, after, context)

    def take_surprise(self, chances: Sequence[float], context: int) -> None:
        """See CopyPricing."""
        with self._lock:
            self._pricing.take_surprise(chances, context)

    def share(self, shape: BeamShape, chances: Sequence[float], context: int) -> CopyShare:
        """See CopyPricing."""
        with self._lock:
            return self._pricing.share(shape, chances, context)

    def drafts_after(self, whole: float, shape: BeamShape) -> bool:
        """See CopyPricing."""
        with self._lock:
            return self._pricing.drafts_after(whole, shape)
