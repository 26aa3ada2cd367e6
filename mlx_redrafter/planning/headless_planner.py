"""Planning without a draft head: copies alone are verified, as far as that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from ..cache.prompt_cache import PromptCache
from ..drafting.copy_acceptance import CopyAcceptance
from ..drafting.shape import BeamShape
from ..engine.shape_planner import MOST_PATIENCE, ObservedStep
from ..tree import HostTree
from .clocks import PLAIN, Clocks
from .copy_planner import CopyPlanner
from .costs import CostModel
from .plain_runs import PlainRuns
from .rate import Rate, paid


class HeadlessPlanner:
    """Plans the steps of a model without a draft head.

    The machine is measured when the first copies are to be priced: a text in which nothing repeats
    needs no measurement.

    Args:
        measure: Measures what steps cost, or reads what was measured before.

    Attributes:
        copies: Prices copies.
    """

    drafting_disabled = False
    probing = False
    drafts_next = False
    choice: BeamShape | None = None
    patience = MOST_PATIENCE

    def __init__(self, measure: Callable[[], CostModel]):
        self.copies = CopyPlanner(self, CopyAcceptance())
        self._measure = measure
        self._costs: CostModel | None = None
        self._for_batches: dict[int, HeadlessPlanner] = {}
        self._timed: set[int] = set()
        self._rate = Rate()
        self._runs = PlainRuns()
        self._context = 0

    @property
    def costs(self) -> CostModel:
        """What steps cost; measured when they are first asked for."""
        if self._costs is None:
            self._costs = self._measure()
        return self._costs

    @cached_property
    def _clocks(self) -> Clocks:
        """How steps differ from what they cost."""
        return Clocks(self.costs)

    def for_batch(self, sequences: int) -> HeadlessPlanner:
        """The planner for steps that so many sequences take together; itself for one."""
        if sequences == 1:
            return self
        if sequences not in self._for_batches:
            made = HeadlessPlanner(lambda: self.costs.for_batch(sequences))
            made.copies = CopyPlanner(made, self.copies.acceptance)
            self._for_batches[sequences] = made
        return self._for_batches[sequences]

    def begin(self, cache: PromptCache | None = None, temperature: float = 0.0) -> None:
        """An answer begins: nothing changes."""

    def next_shape(self, context: int) -> BeamShape | None:  # noqa: ARG002
        """Nothing is drafted but copies."""
        return None

    def next_watch(self, context: int) -> BeamShape | None:  # noqa: ARG002
        """Nothing is drafted but copies."""
        return None

    def watches(self, shape: BeamShape | None) -> bool:  # noqa: ARG002
        """Nothing is drafted but copies."""
        return False

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        """Not asked: nothing is drafted but copies."""
        raise NotImplementedError

    def guess_chances(self, tree: HostTree) -> list[float]:
        """Not asked: nothing is drafted but copies."""
        raise NotImplementedError

    def price(self, step: ObservedStep) -> float | None:  # noqa: ARG002
        """No draft is ever paused."""
        return None

    def observe(self, step: ObservedStep) -> None:
        """Learn from a step's time; the first of a kind may have waited for a GPU's compiler."""
        first = step.nodes not in self._timed
        self._timed.add(step.nodes)
        if self._costs is None:
            return
        self._context = step.context
        if not first:
            self._tell_clocks(step)
        kind = PLAIN + step.nodes
        expected, plain = (self._clocks.seconds(one, step.context) for one in (kind, PLAIN))
        self._rate.add(step, paid(expected if first else step.seconds, expected, plain))

    def _tell_clocks(self, step: ObservedStep) -> None:
        seen = self._runs.seen(step, step.seconds, self.plain_seconds(step.context))
        if seen is not None:
            rows, seconds = seen
            expected = self._clocks.measured(rows, step.context)
            self._clocks.observe(rows, seconds, expected, repeats=step.repeats)

    def reflect(self) -> None:
        """There is nothing to do."""

    # What copies are priced by

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of rows whose forward was timed."""
        return self.costs.sizes

    @property
    def rate(self) -> float:
        """Tokens a second, as decoding goes on the whole."""
        return self._rate.per_plain_step / self.plain_seconds(self._context)

    def plain_seconds(self, context: int) -> float:
        """Seconds of a plain step by now."""
        return self._clocks.seconds(PLAIN, context)

    def apart_seconds(self, context: int) -> float:
        """Seconds lost where two plain steps in a row do not overlap."""
        return self._clocks.apart_seconds(context)

    def verify_seconds(self, rows: int, context: int) -> float:
        """Seconds of a step that verifies so many rows by now."""
        return self.costs.check_seconds(rows, context) * self._clocks.factor(rows)

    def draft_seconds(self, shape: BeamShape) -> float:  # noqa: ARG002
        """Nothing is drafted."""
        return 0.0

    def guessed(self, shape: BeamShape) -> float:  # noqa: ARG002
        """Nothing is guessed."""
        return 0.0
