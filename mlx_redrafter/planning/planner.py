"""Choosing the beam shape that pays best on this machine, or plain decoding where none does.

What steps cost is measured (``costs``) and corrected as they go (``clocks``); what they would yield
is estimated from the trees drafted lately (``acceptance``, ``forecast``), and both together say
what shapes promise (``promises``); which shapes there are follows from the machine (``shapes``).
When to try is told by what was tried and what may be lost (``trials``, ``allowance``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..drafting.recorded import RecordedDrafts
from ..drafting.shape import BeamShape
from ..engine.shape_planner import ObservedStep, StepPlan
from ..tree import HostTree
from .acceptance import kinds_of
from .beginnings import Beginnings
from .choice import Choice
from .clocks import Clocks
from .copy_planner import CopyPlanner
from .costs import CostModel
from .forecast import Forecast
from .honesty import Honesty
from .learnt import Learnt
from .num_nodes import best_prefix
from .prices import StepPrices
from .shapes import candidate_shapes
from .trials import PlannerState, Trials
from .wide_probes import WIDE_PROBES, WideProbes

if TYPE_CHECKING:
    from ..cache.prompt_cache import PromptCache
    from ..engine.model import SpeculativeModel

# Of chosen drafts every so many-th is remembered beside the probes.
REMEMBER_EVERY = 4
# A draft is made with the step before it where it costs at most so much of a plain step.
CHEAP_DRAFT = 0.25

Measure = Callable[["CostModel", "PromptCache"], "CostModel"]


class Planner:
    """Picks the shape of each step; one for a model, kept from answer to answer.

    ========  =====================================  =========================================
    state     next step                              left for
    ========  =====================================  =========================================
    TRYING    a probe, if the account bears it and   DRAFTING when a shape promises ``MARGIN``
              enough plain steps lie between it and  x plain; RESTING when a probe of this
              the last that failed; else plain       answer failed; OFF with enough evidence
    DRAFTING  the choice; now and then a larger      RESTING when it promises less than
              probe, or a plain step for its time    ``LEFT_AT`` or the account is overdrawn
    RESTING   as TRYING                              as TRYING; TRYING when an answer begins
    OFF       as TRYING                              DRAFTING, as TRYING
    ========  =====================================  =========================================

    Where drafts can be watched, and verifying a probe would lose more than its draft costs, it is a
    plain step with a draft beside it that is only compared with the text that follows.

    Only :meth:`begin` and :meth:`observe` change what is planned; ``copies`` learn by themselves.

    Args:
        costs: What steps cost here.
        chains: Whether only chains are verified.
        watches: Whether drafts can be watched, see ``StepPlan.watch``.
        measure: Measures costs again, given those so far and a cache with a text in it; None
            leaves them as they are.
        recorded: How drafts went when the head was trained: a choice to begin with rests on them.
        shares: The planner of other batches, with which what is learnt of acceptance is shared.
    """

    def __init__(
        self, costs: CostModel, *, chains: bool = False, watches: bool = False,
        measure: Measure | None = None, recorded: RecordedDrafts | None = None,
        shares: Planner | None = None,
    ):  # fmt: skip
        self._learnt: Learnt = shares._learnt if shares else Learnt(recorded)
        self.acceptance, self._memory = self._learnt.acceptance, self._learnt.memory
        self.prices, self._honesty = StepPrices(costs), Honesty()
        self.copies, self.copied = CopyPlanner(lambda: self.prices), self._learnt.copied
        self._chains, self._measure = chains, measure
        learnt = self.acceptance, self._memory, self._honesty, self.prices.without_copies
        self._beginnings = Beginnings(*learnt)
        self._for_batches: dict[int, Planner] = {}
        self._context = costs.contexts[0]
        self._made_here = 0.0  # tokens since an answer began
        known = recorded is not None
        self._recorded, self._wide = recorded, WideProbes(known=known)
        self._trials = Trials(costs, chains=chains, watches=watches, known=known)
        self._choice = Choice(
            self.prices, self._learnt, self._honesty, self._beginnings, self._trials,
            candidate_shapes(costs, chains=chains),
        )  # fmt: skip
        self._plan_anew()
        if known and self.choice is None:
            self._trials.doubt(self.clocks, self._context)

    @classmethod
    def for_model(
        cls,
        model: SpeculativeModel,
        *,
        costs: CostModel | None = None,
        recalibrate: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Planner:
        """A planner from the stored costs of a model, which are measured where there are none.

        Args:
            model: A model with a drafter.
            costs: What steps cost; None takes those that are stored.
            recalibrate: Measure again.
            progress: Called with (measurements done, measurements to do).

        Raises:
            RedrafterError: If the model has no drafter, or an argument is of another kind.
        """
        from .cost_store import head_costs, measure_there

        return cls(
            head_costs(model, costs, recalibrate=recalibrate, progress=progress),
            chains=model.target.verifies == "chain",
            watches=model.drafts_early,
            measure=partial(measure_there, model),
            recorded=model.recorded,
        )

    def for_batch(self, sequences: int) -> Planner:
        """The planner for steps that so many sequences take together; itself for one.

        It shares what is learnt of acceptance, and has costs and times of its own. Every sequence's
        tokens count alike, so the shape that makes most tokens a second for one makes most for all.
        """
        if sequences == 1:
            return self
        if sequences not in self._for_batches:
            costs, recorded = self.costs.for_batch(sequences), self._recorded
            made = Planner(costs, chains=self._chains, recorded=recorded, shares=self)
            self._for_batches[sequences] = made
        return self._for_batches[sequences]

    @property
    def costs(self) -> CostModel:
        """What steps cost, as measured."""
        return self.prices.costs

    @property
    def clocks(self) -> Clocks:
        """How steps differ from what was measured, by now."""
        return self.prices.clocks

    @property
    def choice(self) -> BeamShape | None:
        """The shape chosen; None is plain decoding."""
        return self._choice.shape

    @property
    def tries(self) -> bool:
        """Whether anything is drafted, if only to see how it goes."""
        return self.choice is not None or self._trials.probes.first is not None

    @property
    def state(self) -> PlannerState:
        """What is known by now."""
        return PlannerState.DRAFTING if self.choice is not None else self._trials.state

    @property
    def drafting_disabled(self) -> bool:
        """Whether drafts do not pay here as far as is known."""
        return self.state is PlannerState.OFF

    @property
    def plan(self) -> StepPlan:
        """What to draft next; to look at it changes nothing."""
        choice, trials, early = self.choice, self._trials, self._drafts_early
        if choice is None:
            probe, watches = trials.next, trials.probes.watches
            return StepPlan(
                None if watches else probe, early=early, probing=True,
                watch=probe if watches else None, patience=trials.patience,
            )  # fmt: skip
        due = self._wide.due
        probing = due is not None
        waits = trials.allowance.defers(self._choice.price(self._context))
        if waits or (self._choice.breaks.due and not trials.probes.certain):
            return StepPlan(early=early, probing=probing)
        return StepPlan(due or choice, early=early, watched=probing, probing=probing)

    @property
    def _drafts_early(self) -> bool:
        """Whether drafts cost so little that one is made before it is known whether it is wanted.

        After a text's last step it is not; but a draft that was made with the step before it can
        be read, and only what is worth it verified, at no evaluation more.
        """
        shape = self.choice or self._trials.probes.first
        if shape is None:
            return False
        return self.costs.draft_seconds(shape) <= CHEAP_DRAFT * self.costs.plain[0]

    def begin(
        self, cache: PromptCache | None = None, temperature: float = 0.0, *, among: bool = False
    ) -> None:
        """An answer begins; costs are measured in ``cache``, its prompt's, if unknown there.

        Among texts that are under way none has ended: what is known of theirs stays.
        """
        for planner in (self, *self._for_batches.values()):
            planner._trials.begin_answer()
        if cache is not None:
            self._context = len(cache)
            if self._measure is not None and self.prices.unsure(len(cache)):
                self._take_costs(self._measure(self.prices.costs_by_now, cache))
                for sequences, planner in self._for_batches.items():
                    planner._take_costs(self.costs.for_batch(sequences))
            else:
                self._trials.reprice(self.clocks, self._context)
        if among:
            return
        for planner in (self, *self._for_batches.values()):
            planner._begin_as_before(temperature)
            planner._wide.begin_answer(early=planner._drafts_early)

    def _begin_as_before(self, temperature: float) -> None:
        """Draft as before the last answer, if that was unlike those before it."""
        self._beginnings.second_chance.sample_at(temperature)
        if self._beginnings.begin(self._choice.expected, self._made_here, self._trials.allowance):
            self._wide.forget()
            self._choice.make(self._context)
        self._made_here = 0.0
        price = self._choice.price(self._context)
        self._beginnings.begun(self._choice.expected, price, self._trials.allowance)

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        """How many nodes of a draft to verify, from the first on: all while nothing is chosen, then
        as many as promise more tokens than decoding makes in the time they take.
        """
        drafted = len(tree.tokens) - 1
        prices = self.prices
        if prices.without_copies.tokens == 0 or self.choice is None:
            return drafted
        chances, rate = self.guess_chances(tree)[1:], prices.rate_without_copies
        seconds = partial(prices.check_seconds, context=context)
        return best_prefix(chances, prices.sizes, seconds, rate, seconds(1))[0]

    def guess_chances(self, tree: HostTree) -> list[float]:
        """The chance of each node of a draft to be accepted, 1 for the root."""
        chances = self.acceptance.chances
        return [1.0, *(float(chances[kind]) for kind in kinds_of(tree)[1:])]

    def price(self, step: ObservedStep) -> float | None:
        """Expected time of a step in plain steps; None for plain ones and for probes."""
        # Since it was observed, the choice may be another, and the probe that is due.
        if step.shape is None or step.watched_before or step.probing or self.choice is None:
            return None
        return self.prices.price(step)

    def forecasts(self, context: int) -> list[Forecast]:
        """Plain decoding and every known shape, with what it promises, plain steps and copies among
        its drafts counted in.
        """
        return self._choice.promises.beside_plain(context, self.choice, self._trials.probes.free)

    @property
    def known(self) -> bool:
        """Whether enough is known to say whether drafts pay, and which."""
        if self.state is PlannerState.DRAFTING:
            return self.prices.speed(self._context) is not None and self._wide.settled
        return self.state is PlannerState.OFF

    def plain_speed(self, context: int) -> float | None:
        """Tokens a second of plain decoding, by plain steps as timed; None before a few were."""
        return self.prices.plain_speed(context)

    def observe(self, step: ObservedStep) -> None:
        """Learn from a step that is over."""
        self._context = step.context
        self._made_here += step.made
        timed = self.prices.time(step)
        if self._trials.forgive(self.clocks.machine):
            self.clocks.doubt()
            self._trials.reprice(self.clocks, self._context)
        if self.choice is not None:
            self._honesty.observe(step, self._choice.forecast, self.prices)
        if step.is_plain:
            self._choice.breaks.take_plain(step.repeats)
            self._trials.take_plain(step, timed.late, trying=self.choice is None)
            self._trials.allowance.take_watched(self.prices.in_vain(step))
        elif step.shape is not None:  # copies alone say nothing of drafts
            self._choice.breaks.take_draft()
            self._learnt.take_verified(step.records, trying=self.choice is None)
            self._learn(step, step.shape)
        self._take_watched(step, timed.watch_price)
        self._wide.take_step(step)
        self._choice.take_steps(step.repeats, self._context)
        looks = self.choice is not None and not self._beginnings.harder.suspected
        self._wide.find(self._trials, self._choice.forecast if looks else None)

    def _take_watched(self, step: ObservedStep, price: float | None) -> None:
        """Learn from drafts that were watched, and from what the step's own took, if known."""
        if step.watching and step.next_shape is not None:
            self._trials.launch_watched(step.next_shape, price)
        for watched in step.watched:
            self._learnt.take_watched(watched, trying=self.choice is None)
            if not watched.verified and self.choice is None:
                self._trials.take_watched(watched.tokens)
                self._plan_or_price(watched.tokens)
        wide = next((watched.shape for watched in step.watched if watched.verified), None)
        if wide is not None:  # of texts decoded together each tells of it, but it was one
            self._take_wide(wide, counts=self._wide.awaited)

    def _take_wide(self, shape: BeamShape, *, counts: bool = True) -> None:
        """Choose by a larger probe; see whether it changed anything, if it counts as one."""
        before = self.choice
        if before is not None:
            self._choice.make(self._context)
        if counts:
            longer = before and self.choice and self.choice.length > before.length
            news = self._memory.covering(shape) < WIDE_PROBES
            self._wide.take_probe(news=news, longer=bool(longer))

    def _plan_or_price(self, tokens: float) -> None:
        """Choose, after a probe that made so many tokens."""
        if tokens > 1.0 or self._trials.probes.free:
            self._choice.make(self._context)
        else:  # nothing accepted is no reason to draft
            self._trials.reprice(self.clocks, self._context)

    def reflect(self) -> None:
        """Look at the trees of late as every shape would have drafted them; changes no answer."""
        if self.choice is not None:
            self._choice.promises.prepare()

    def _learn(self, step: ObservedStep, shape: BeamShape) -> None:
        """Learn from a step that drafted, by whether it was a probe."""
        price, probe = self.prices.price(step), self._is_probe(shape)
        if probe:
            self._memory.add_records(step.records, shape)
        if self.choice is None:
            self._trials.take_probe(price, step.tokens, self.prices.paid(step))
            self._plan_or_price(step.tokens)
            return
        self._trials.allowance.take_drafted(price, step.tokens)
        forecast = None if probe or step.watched_before else self._choice.expected - 1.0
        if probe:
            self._take_wide(shape)
        elif forecast is not None:
            self._wide.take_draft(step.tokens - 1.0, shape.length, forecast)
            if self._memory.has_recorded or self._choice.breaks.drafts % REMEMBER_EVERY == 0:
                self._memory.add_records(step.records[:1], shape, probe=False)
        if self._beginnings.take_draft(step.records, shape, forecast):
            self._choice.make(self._context)

    def _is_probe(self, shape: BeamShape) -> bool:
        return self.choice is None or shape == self._wide.due

    def _take_costs(self, costs: CostModel) -> None:
        self.prices.take_costs(costs)
        self._choice.take_shapes(candidate_shapes(costs, chains=self._chains))
        self._trials.take_costs(costs)
        self._wide.forget()
        self._plan_anew()

    def _plan_anew(self) -> None:
        """Price probes by the costs as they are; choose at once, where that needs no probe."""
        self._trials.reprice(self.clocks, self._context)
        if self._trials.probes.free is not None or self._recorded is not None:
            self._choice.make(self._context)
