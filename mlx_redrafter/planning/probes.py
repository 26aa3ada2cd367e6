"""Which shape a probe has: one that shows much and costs little here."""

from __future__ import annotations

from ..drafting.shape import BeamShape
from .clocks import PLAIN, Clocks
from .costs import CostModel
from .shapes import covers, probe_shapes

# Until drafts have paid once, a probe costs no more plain steps than this, and after failures no
# more than the second figure; if no shape is so cheap, the cheapest of those that could pay at all,
# up to the third.
FIRST_PROBE_PRICE = 2.0
SMALL_PROBE_PRICE = 1.4
LARGEST_FIRST_PROBE = 4.0
# One that is only watched costs its draft: no more than this if any is so cheap, and after failures
# the second figure.
WATCH_PRICE = 0.35
SMALL_WATCH_PRICE = 0.25
# Of what is lost where two plain steps do not overlap, a draft made between them loses so much: a
# host that is held up until the draft is nearly over builds the next step's graph meanwhile no
# more. The pocket's drafts took 1.1 plain steps so, of which 0.4 to 0.5 were theirs.
NOT_OVERLAPPED = 0.5
# A shape that would make less than this, times plain, were all of its path accepted, is not worth a
# probe: few texts are guessed so well, and there is little to gain on those.
LEAST_AT_BEST = 1.15
# Later it may cost so many at most, and beyond what drafts make this share of the account, and no
# more than the third figure. It is no longer than so many times what drafts make.
PROBE_PRICE = 7.0
RISK = 0.5
LARGEST_RISK = 1.5
REACH = 3.0
# What a shape has to promise, times plain, to be worth drafting.
MARGIN = 1.04
# A shape that costs so few plain steps does so even where a cost is far off.
CERTAIN_PRICE = 0.7
# Prices hold as long as contexts and clocks are as close as this to those they were made for:
# tokens, a share of them, and a share of a factor.
CLOSE_TOKENS = 64
CLOSE_CONTEXT = 0.1
CLOSE_FACTOR = 0.01


class Probes:
    """Shapes to probe with, and what they cost by now.

    Args:
        costs: What steps cost.
        chains: Whether only chains are verified.
        watches: Whether drafts can be watched before any is verified.

    Attributes:
        first: What to probe with while nothing is chosen; None where no draft could pay.
        first_price: What a step that verifies it costs, or as much of it as may be verified before
            drafts have paid; in plain steps.
        verified_price: What the next one costs that is verified, now or later.
        watches: Whether it is only watched: not where it pays whatever comes.
        watch_overhead: What a watched draft costs besides its own time, in plain steps.
        trial_price: What a step that probes costs, in plain steps.
        free: A shape that costs less than a plain step, where there is one: it pays whatever comes.
        certain: Whether it costs so much less that no plain step has to show it.
    """

    def __init__(self, costs: CostModel, *, chains: bool, watches: bool = False):
        self._costs = costs
        self._can_watch = watches
        # Priced at every answer: what differs by shape, and by rows alone.
        self._drafts = [
            (shape, 1 + shape.nodes, costs.draft_seconds(shape))
            for shape in probe_shapes(costs, chains=chains)
        ]
        self._rows = {rows for _, rows, _ in self._drafts}
        self._priced: list[tuple[float, BeamShape]] = []
        self._possible: list[tuple[float, BeamShape]] = []  # of them, to begin with
        self._watchable: list[tuple[float, BeamShape, float]] = []  # with what a draft costs
        self._least_watchable: tuple[float, BeamShape, float] | None = None
        self._draft_prices: list[float] = []
        self._measured: list[float] = []
        self._context = 0
        self._factors: dict[int, float] = {}
        self.first: BeamShape | None = None
        self.first_price = self.trial_price = self.verified_price = 0.0
        self.watches = False
        self.watch_overhead = 0.0
        self.free: BeamShape | None = None
        self.certain = False

    def reprice(
        self,
        clocks: Clocks,
        context: int,
        *,
        small: bool,
        earned: bool,
        expected: float = 0.0,
        overhead: float | None = None,
    ) -> None:
        """Price all shapes again, if prices have changed.

        Args:
            clocks: How times differ from those measured.
            context: Tokens before the step.
            small: Whether the first probe is to be a small one.
            earned: Whether probes have earned all that is saved, so that it may cost more.
            expected: Tokens that a step is expected to make that verifies it: it is only watched,
                if that can be, where it would lose more than a watched draft costs.
            overhead: What such a draft costs besides its own time, in plain steps; None where that
                was not seen yet: one step overlaps less with the next, then.
        """
        plain = clocks.factor(PLAIN)
        factors = {rows: clocks.factor(rows) / plain for rows in self._rows}
        if not self._hold(context, factors):
            self._price_all(context, factors)
        self.first_price, self.first = self._first(small=small, earned=earned)
        self.trial_price = self.verified_price = self.first_price
        self.watches = False
        if not self._can_watch or self.free is not None:
            return
        apart = clocks.apart_seconds(context) / clocks.seconds(PLAIN, context)
        self.watch_overhead = NOT_OVERLAPPED * apart if overhead is None else overhead
        limit = SMALL_WATCH_PRICE if small else WATCH_PRICE
        self._watch(limit, lost=self.first_price + apart - expected)

    def _watch(self, limit: float, lost: float) -> None:
        """Watch the shape that shows most of those that cost little, or the cheapest.

        Args:
            limit: What is little, in plain steps.
            lost: What a step is expected to lose that verifies a probe: no more is paid.
        """
        found = next((one for one in self._watchable if one[2] <= limit), self._least_watchable)
        if found is None:
            return
        price, shape, draft = found
        watched = draft + self.watch_overhead
        if watched < lost:
            self.first_price, self.first = min(price, FIRST_PROBE_PRICE), shape
            self.trial_price, self.watches = 1.0 + watched, True

    def _hold(self, context: int, factors: dict[int, float]) -> bool:
        """Whether prices are as they were; to make them takes a fifth of a small model's step."""
        near = CLOSE_TOKENS + CLOSE_CONTEXT * context
        if not self._factors or abs(context - self._context) > near:
            return False
        return all(
            abs(factor - self._factors[rows]) <= CLOSE_FACTOR * factor
            for rows, factor in factors.items()
        )

    def _price_all(self, context: int, factors: dict[int, float]) -> None:
        self._context, self._factors = context, factors
        plain = self._costs.step_seconds(None, context)
        verifying = {rows: self._costs.check_seconds(rows, context) for rows in self._rows}
        self._measured = [(draft + verifying[rows]) / plain for _, rows, draft in self._drafts]
        self._draft_prices = [draft / plain for _, _, draft in self._drafts]
        self._priced = [
            (measured * factors[rows], shape)
            for measured, (shape, rows, _) in zip(self._measured, self._drafts, strict=True)
        ]
        cheapest = min(self._priced, key=_price, default=None)
        self.free = cheapest[1] if cheapest and cheapest[0] * MARGIN < 1.0 else None
        self.certain = cheapest is not None and cheapest[0] <= CERTAIN_PRICE
        # By now or as measured: what made steps dear may be gone, and only a probe can tell.
        self._possible = [
            (price, shape)
            for (price, shape), measured in zip(self._priced, self._measured, strict=True)
            if min(price, measured) <= min(LARGEST_FIRST_PROBE, (1 + shape.length) / LEAST_AT_BEST)
        ]
        self._watchable = [
            (price, shape, draft)
            for (price, shape), draft in zip(self._priced, self._draft_prices, strict=True)
            if price <= (1 + shape.length) / LEAST_AT_BEST
        ]
        self._least_watchable = min(self._watchable, key=lambda one: one[2], default=None)

    def _first(self, *, small: bool, earned: bool) -> tuple[float, BeamShape | None]:
        limits = [SMALL_PROBE_PRICE] if small else []
        for limit in [*limits, FIRST_PROBE_PRICE + (LARGEST_RISK if earned else 0.0)]:
            for price, shape in self._possible:
                if price <= limit:
                    return price, shape
        if self._possible:
            return min(self._possible, key=_price)
        if self._costs.doubtful and self._priced:
            # What drafts cost is not known well enough to try none: steps will tell.
            return FIRST_PROBE_PRICE, min(self._priced, key=_price)[1]
        return 0.0, None

    def larger(self, choice: BeamShape, tokens: float, balance: float) -> BeamShape | None:
        """A probe that shows more than the choice does, can be afforded and may show something.

        Args:
            choice: What is drafted.
            tokens: What a step of it makes.
            balance: Plain steps that may be lost.
        """
        limit = _limit(tokens, balance)
        for price, shape in self._priced:
            if price <= limit and shape.length <= REACH * tokens and not covers(choice, shape):
                return shape
        return None

    def longer(self, choice: BeamShape, balance: float) -> BeamShape | None:
        """The cheapest of the longest probes that can be afforded, after drafts of which all of the
        length was accepted.

        Args:
            choice: What is drafted.
            balance: Plain steps that may be lost.
        """
        tokens = 1.0 + choice.length
        limit = _limit(tokens, balance)
        possible = [
            (shape.length, -price, shape)
            for price, shape in self._priced
            if price <= limit and choice.length < shape.length <= REACH * tokens
        ]
        return max(possible, key=lambda one: one[:2], default=(0, 0.0, None))[2]


def _price(priced: tuple[float, BeamShape]) -> float:
    return priced[0]


def _limit(tokens: float, balance: float) -> float:
    """What a probe may cost beside drafts that make so many tokens, in plain steps."""
    limit = min(PROBE_PRICE, tokens + min(LARGEST_RISK, RISK * max(0.0, balance)))
    return min(limit, 1.0 + balance)  # one that fails is not to end what pays
