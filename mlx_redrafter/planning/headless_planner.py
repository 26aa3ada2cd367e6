"""Planning without a draft head: copies alone are verified, as far as that pays."""

from __future__ import annotations

from collections.abc import Callable

from ..cache.prompt_cache import PromptCache
from ..drafting.copy_memory import CopyMemory
from ..drafting.shape import BeamShape
from ..engine.shape_planner import MOST_PATIENCE, ObservedStep, StepPlan
from ..tree import HostTree
from .copy_planner import CopyPlanner
from .costs import CostModel
from .prices import StepPrices


class HeadlessPlanner:
    """Plans the steps of a model without a draft head.

    The machine is measured when the first copies are to be priced: a text in which nothing repeats
    needs no measurement.

    Args:
        measure: Measures what steps cost, or reads what was measured before.
        measure_there: Measures them again, given those so far and a cache with a text in it; None
            leaves them as they are.
        shares: The planner of single texts, with which what is learnt of copies is shared.

    Attributes:
        copies: Prices copies.
        copied: What is learnt of copies.
    """

    plan = StepPlan(patience=MOST_PATIENCE)
    choice: BeamShape | None = None

    def __init__(
        self,
        measure: Callable[[], CostModel],
        measure_there: Callable[[CostModel, PromptCache], CostModel] | None = None,
        *,
        shares: HeadlessPlanner | None = None,
    ):
        self.copies = CopyPlanner(self.measured_prices)
        self.copied: CopyMemory = shares.copied if shares else CopyMemory()
        self._measure, self._measure_there = measure, measure_there
        self._prices: StepPrices | None = None
        self._for_batches: dict[int, HeadlessPlanner] = {}

    def measured_prices(self) -> StepPrices:
        """What steps cost by now; measures them the first time."""
        if self._prices is None:
            self._prices = StepPrices(self._measure())
        return self._prices

    @property
    def costs(self) -> CostModel:
        """What steps cost, as measured; measured now, if they were not yet."""
        return self.measured_prices().costs

    def for_batch(self, sequences: int) -> HeadlessPlanner:
        """The planner for steps that so many sequences take together; itself for one."""
        if sequences == 1:
            return self
        if sequences not in self._for_batches:
            self._for_batches[sequences] = HeadlessPlanner(
                lambda: self.costs.for_batch(sequences), shares=self
            )
        return self._for_batches[sequences]

    def begin(
        self,
        cache: PromptCache | None = None,
        temperature: float = 0.0,  # noqa: ARG002
        *,
        among: bool = False,  # noqa: ARG002
    ) -> None:
        """An answer begins; costs are measured in ``cache``, its prompt's, if unknown there."""
        prices = self._prices
        if cache is None or self._measure_there is None or prices is None:
            return
        if prices.unsure(len(cache)):
            prices.take_costs(self._measure_there(prices.costs_by_now, cache))
            for sequences, planner in self._for_batches.items():
                if planner._prices is not None:
                    planner._prices.take_costs(prices.costs.for_batch(sequences))

    def plain_speed(self, context: int) -> float | None:
        """Tokens a second of plain decoding, by plain steps as timed; None before a few were."""
        return None if self._prices is None else self._prices.plain_speed(context)

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:  # noqa: ARG002
        """None: nothing is drafted but copies."""
        return 0

    def guess_chances(self, tree: HostTree) -> list[float]:
        """Nothing is guessed, and so nothing expected of a guess."""
        return [1.0, *[0.0] * (len(tree.tokens) - 1)]

    def price(self, step: ObservedStep) -> float | None:  # noqa: ARG002
        """No draft is ever paused."""
        return None

    def observe(self, step: ObservedStep) -> None:
        """Learn from a step's time, if times are of any use yet."""
        if self._prices is not None:
            self._prices.time(step)

    def reflect(self) -> None:
        """There is nothing to do."""
