"""What steps cost by now: what was measured, corrected by what they have taken since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep
from ..ranges import of_kind
from .clocks import ALONE, PLAIN, Clocks
from .costs import CostModel
from .forecast import Forecast, path_rows
from .plain_runs import PlainRuns
from .rate import LARGEST_SHARE, Rate, paid

# Timed plain steps from which on the speed of plain decoding is told, and tokens from which
# on that of decoding as it goes is, and forecasts are to be believed.
PLAIN_STEPS_KNOWN = 4
TOKENS_KNOWN = 150


@dataclass
class Made:
    """What the timed steps of one shape made.

    Attributes:
        steps: How many there were.
        tokens: Tokens they made.
        seconds: What they took.
    """

    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, step: ObservedStep) -> None:
        """Count a step, or several."""
        self.steps += step.repeats
        self.tokens += step.made
        self.seconds += step.repeats * step.seconds


@dataclass(frozen=True)
class Timed:
    """What the time of a step tells besides what steps cost.

    Attributes:
        late: Plain steps that it took longer, since after a draft it overlapped with nothing.
        watch_price: Plain steps that its draft took, which is only watched; None where there is
            none, or it may have waited for a compiler.
    """

    late: float = 0.0
    watch_price: float | None = None


class StepPrices:
    """Times of steps, expected and taken; what copies are priced by too, see ``CopyPlanner``.

    Args:
        costs: As measured.

    Attributes:
        costs: As measured.
        clocks: How steps differ from that by now.
        without_copies: What is made in steps that verified no copies.
    """

    def __init__(self, costs: CostModel):
        of_kind(costs, "costs", CostModel, "a CostModel (Planner.for_model(model) measures one)")
        self.costs, self.clocks = costs, Clocks(costs)
        # Guesses accepted in a step of each shape of which that is known.
        self._accepted: dict[BeamShape, float] = {}
        # Kinds of step that were taken: shape, candidates verified, and what was drafted with it.
        self._kinds: set[tuple[BeamShape | None, int, BeamShape | None]] = set()
        self._shapes: dict[BeamShape | None, Made] = {}
        self._rate, self._context = Rate(), costs.contexts[0]
        self.without_copies = Rate()
        self._runs = PlainRuns()
        self._after_draft = False
        # Plain steps that the steps told last took longer than they should, if they were plain.
        self._excess: float | None = None

    def take_costs(self, costs: CostModel) -> None:
        """Costs were measured: nothing is known of how steps differ from them."""
        self.costs, self.clocks = costs, self.clocks.anew(costs)

    def unsure(self, context: int) -> bool:
        """Whether costs are to be measured where a text has come to: unknown there, or wrong."""
        return self.clocks.wrong or not self.costs.knows(context)

    @property
    def costs_by_now(self) -> CostModel:
        """The costs; where steps have long disagreed with them, as steps say."""
        if not self.clocks.wrong:
            return self.costs
        return self.costs.scaled({size: self.clocks.factor(size) for size in self.sizes})

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of rows whose forward was timed."""
        return self.costs.sizes

    @property
    def tokens(self) -> float:
        """Tokens made of late."""
        return self._rate.tokens

    @property
    def rate(self) -> float:
        """Tokens a second, as decoding goes on the whole."""
        return self._a_second(self._rate, self._context)

    @property
    def rate_without_copies(self) -> float:
        """Tokens a second where nothing is copied: what time is worth to a draft there."""
        return self._a_second(self.without_copies, self._context)

    def _a_second(self, rate: Rate, context: int) -> float:
        return rate.per_plain_step / self.plain_seconds(context)

    def plain_seconds(self, context: int) -> float:
        """What a plain step takes."""
        return self.clocks.seconds(PLAIN, context)

    def apart_seconds(self, context: int) -> float:
        """Seconds lost where two plain steps in a row do not overlap."""
        return self.clocks.apart_seconds(context)

    def plain_speed(self, context: int) -> float | None:
        """Tokens a second of plain decoding, by plain steps as they were timed; None before."""
        if self.made(None).steps < PLAIN_STEPS_KNOWN:
            return None
        return 1.0 / self.plain_seconds(context)

    def speed(self, context: int) -> float | None:
        """Tokens a second as decoding goes on the whole, with the drafts that failed of late, the
        copies and the plain steps between; None before enough tokens were made."""
        if self.tokens < TOKENS_KNOWN:
            return None
        return self._a_second(self._rate, context)

    def check_seconds(self, rows: int, context: int) -> float:
        """Seconds of a step that verifies so many rows, its draft left out."""
        return self.costs.check_seconds(rows, context) * self.clocks.factor(rows)

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft."""
        return self.costs.draft_seconds(shape) * self.clocks.machine

    def paid(self, step: ObservedStep) -> float:
        """What a step took, in plain steps; of what it waited for little is counted."""
        seconds, expected = self._own_seconds(step, step.drafted_before), self.seconds(step)
        if step.overlapped_draft is not None:
            expected += self.draft_seconds(step.overlapped_draft)
        return paid(seconds, expected, self.plain_seconds(step.context))

    def in_vain(self, step: ObservedStep) -> float:
        """Plain steps that a draft took which was made for a plain step, and not verified."""
        if not step.is_plain or step.drafted_before is None:
            return 0.0
        return self.draft_seconds(step.drafted_before) / self.plain_seconds(step.context)

    def guessed(self, shape: BeamShape) -> float:
        """Guesses accepted in a step of that shape; 0 where nothing is known of it."""
        return self._accepted.get(shape, 0.0)

    def take_forecasts(self, forecasts: Iterable[Forecast]) -> None:
        """Believe of guesses what these say, and nothing of other shapes."""
        self._accepted = {one.shape: one.tokens_per_step - 1.0 for one in forecasts if one.shape}

    def made(self, shape: BeamShape | None) -> Made:
        """What timed steps of a shape made; None is plain decoding."""
        return self._shapes.get(shape, Made())

    def seconds(self, step: ObservedStep) -> float:
        """Expected time of a step that was taken."""
        rows = 1 + step.nodes
        return self._measured(step, rows) * self.clocks.factor(rows)

    def price(self, step: ObservedStep) -> float:
        """The same in plain steps."""
        return self.seconds(step) / self.plain_seconds(step.context)

    def time(self, step: ObservedStep) -> Timed:
        """Learn from a step's time.

        The first step of a kind may have waited for a GPU's compiler, for its own draft's sake or
        for that of the draft it makes for the next.
        """
        kind, self._context = (step.shape, step.nodes, step.next_shape), step.context
        watch_price = self._watch_price(step, known=kind in self._kinds)
        if not step.is_plain:
            self._after_draft = step.shape is not None
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._count(step, self.price(step))
            return Timed(watch_price=watch_price)
        seconds = self._own_seconds(step, step.drafted_before if step.shape else None)
        seen = self._runs.seen(step, seconds, self.plain_seconds(step.context))
        late = 0.0 if seen is None else self._tell_clocks(step, *seen)
        self._count(step, self.paid(step))
        if step.shape is not None or not step.nodes:
            self._shapes.setdefault(step.shape, Made()).add(step)
        return Timed(late, watch_price)

    def _count(self, step: ObservedStep, taken: float) -> None:
        """Count what a step made in so many plain steps."""
        self._rate.add(step, taken)
        if not any(record.copied for record in step.records):
            self.without_copies.add(step, taken)

    def _own_seconds(self, step: ObservedStep, before: BeamShape | None) -> float:
        """What a step took, with a draft that was made in the graph of the step before, and without
        one that its own graph made for the next.
        """
        seconds = step.seconds
        if before is not None:
            seconds += self.draft_seconds(before)
        if step.next_shape is not None and not step.watching:
            seconds -= self.draft_seconds(step.next_shape)
        return seconds

    def _watch_price(self, step: ObservedStep, *, known: bool) -> float | None:
        """What a watched draft took: a CPU launches it in the step before its own."""
        excess = step.repeats * (step.seconds / self.plain_seconds(step.context) - 1.0)
        tells = step.watching and known and step.is_amid_plain and self._excess is not None
        price = max(0.0, (self._excess or 0.0) + excess) if tells else None
        self._excess = excess if step.is_amid_plain and not step.watching else None
        return price

    def _tell_clocks(self, step: ObservedStep, rows: int, seconds: float) -> float:
        """Tell the clocks; how late the step was, see :class:`Timed`."""
        lost = 0.0
        if rows == ALONE and self._after_draft:
            late = seconds / self.plain_seconds(step.context) - 1.0
            lost = (1 + step.early) * min(LARGEST_SHARE - 1.0, max(0.0, late))
            self._after_draft = False
        expected = self._measured(step, rows)
        self.clocks.observe(rows, seconds, expected, repeats=step.repeats)
        return lost

    def _measured(self, step: ObservedStep, rows: int) -> float:
        """What a step costs by what was measured, without any factor; ``rows`` is its kind."""
        if step.shape is None:  # copies alone, or plain
            return self.clocks.measured(rows, step.context)
        return self.costs.step_seconds(
            step.shape,
            step.context,
            nodes=step.nodes,
            kept=step.tokens,
            rejected=step.rejected,
            path_rows=path_rows(step.records[0].tree) if self.costs.path_row else 0.0,
        )
