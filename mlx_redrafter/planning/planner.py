"""Choosing the beam shape that pays best on this machine, or plain decoding where none does.

What a step costs is known from :mod:`costs`; what it yields is estimated from the trees that were
verified lately, with the chances of :mod:`acceptance`. A smaller shape is judged by the part of a
wide tree that it would have drafted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..drafting.copy_acceptance import CopyAcceptance
from ..drafting.shape import BeamShape
from ..engine.model import SpeculativeModel
from ..engine.shape_planner import ObservedStep
from ..tree import HostTree
from .acceptance import KINDS, AcceptanceModel, kinds_of, subtree
from .copy_planner import CopyPlanner
from .cost_store import load_costs
from .costs import CostModel
from .num_nodes import num_nodes_to_verify

FloatArray = npt.NDArray[np.float64]

# The shapes to choose from, few, so that each is compiled and warmed up once. With the root each
# makes as many rows as were timed (2, 3, 4, 6, 8, 12, 16, 24): what other numbers of rows cost is
# not known, and it need not lie in between.
CANDIDATES = (
    BeamShape(1, 1),
    BeamShape(1, 2),
    BeamShape(1, 3),
    BeamShape(1, 5),
    BeamShape(1, 7),
    BeamShape(1, 11),
    BeamShape(1, 15),
    BeamShape(2, 2, 3),
    BeamShape(2, 4, 5),
    BeamShape(2, 5, 7),
    BeamShape(3, 5, 11),
    BeamShape(2, 15, 15),
    BeamShape(3, 7, 15),
    BeamShape(4, 5, 15),
    BeamShape(3, 11, 23),
    BeamShape(4, 7, 23),
)
# Shapes to judge the candidates by: the first covers them all, later ones cost less where checking
# a token costs as much as writing one. What a budget leaves out of the long ones are their least
# likely nodes, which hardly count. Nothing is learnt of shapes longer than the probe, so width is
# given up first: it hardly pays where the draft is the dear part of a step.
PROBES = (
    BeamShape(4, 15, 31),
    BeamShape(2, 15, 23),
    BeamShape(2, 15, 15),
    BeamShape(1, 15),
    BeamShape(4, 7, 23),
    BeamShape(3, 5, 11),
    BeamShape(1, 7),
    BeamShape(2, 4, 5),
    BeamShape(1, 3),
    BeamShape(1, 2),
)
# Where a target verifies chains, only one path is ever checked: width buys nothing there.
CHAIN_CANDIDATES = tuple(shape for shape in CANDIDATES if shape.width == 1)
CHAIN_PROBES = tuple(shape for shape in PROBES if shape.width == 1)
PROBE_PRICE = 7.0  # plain steps that a probe may cost

REMEMBERED_TREES = 24
FIRST_PROBES = 6
DRIFT_RATE = 0.15
REPLAN_STEPS = 24
# While decoding plainly, where only a trial brings news.
REPLAN_PLAIN_STEPS = 256
# Steps between probes where drafting pays: twice as many each time the choice stays the same.
PROBE_STEPS = (64, 512)
# Drafting has to promise this much before plain decoding is left for it.
MARGIN = 1.05
# A draft is made ahead where it costs at most so much of a plain step.
CHEAP_DRAFT = 0.25
RATE_FORGET = 0.995
# Share of the time that may go into trying drafts which do not pay.
TRIAL_SHARE = 0.01
FIRST_TRIAL_STEPS = 256


@dataclass(frozen=True)
class Forecast:
    """What one choice promises.

    Attributes:
        shape: The beam shape; None is plain decoding.
        tokens_per_step: Expected tokens of a step.
        step_seconds: Expected time of a step.
    """

    shape: BeamShape | None
    tokens_per_step: float
    step_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Expected speed."""
        return self.tokens_per_step / self.step_seconds


def _affordable_probe(costs: CostModel, probes: Sequence[BeamShape]) -> BeamShape:
    limit = PROBE_PRICE * costs.step_seconds(None, 0)
    return next((probe for probe in probes if costs.step_seconds(probe, 0) <= limit), probes[-1])


class Planner:
    """Picks the shape of each step; one for a model, kept from answer to answer.

    Args:
        costs: What steps cost here.
        candidates: The shapes to choose from.
        probes: Shapes to judge them by, the first affordable one is taken.
    """

    def __init__(
        self,
        costs: CostModel,
        candidates: Sequence[BeamShape] = CANDIDATES,
        probes: Sequence[BeamShape] = PROBES,
    ):
        self.costs = costs
        self.acceptance = AcceptanceModel()
        self.copies = CopyPlanner(self, CopyAcceptance())
        self.probe = _affordable_probe(costs, probes)
        self._candidates = tuple(candidates)
        self._probes = tuple(probes)
        # Trees tell the same of every batch size, but only to those with the same probe.
        self._trees_of: dict[BeamShape, deque[FloatArray]] = {}
        self._trees = self._trees_of.setdefault(self.probe, deque(maxlen=REMEMBERED_TREES))
        self._for_batches: dict[int, Planner] = {}
        self._probes_left = FIRST_PROBES
        self._choice: BeamShape | None = None
        self._steps_to_replan = 0
        self._probe_gap = self._steps_to_probe = PROBE_STEPS[0]
        self._probed: BeamShape | None = None
        self._trial_steps = FIRST_TRIAL_STEPS
        self._steps_to_trial = FIRST_TRIAL_STEPS
        # Measured over predicted step time, plain and drafted; the machine drifts.
        self._drift = {True: 1.0, False: 1.0}
        # Kinds of step that were taken: shape, candidates verified, and what was drafted with it.
        self._timed: set[tuple[BeamShape | None, int, BeamShape | None]] = set()
        self._made = self._taken = 0.0  # tokens of a text and their seconds, of late

    @classmethod
    def for_model(
        cls,
        model: SpeculativeModel,
        *,
        recalibrate: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Planner:
        """A planner from the stored costs of a model, which are measured where there are none.

        Args:
            model: A model whose drafter is a Drafter.
            recalibrate: Measure again.
            progress: Told (measurements done, measurements to do).
        """
        costs = load_costs(model, recalibrate=recalibrate, progress=progress)
        if model.target.verifies == "chain":
            return cls(costs, CHAIN_CANDIDATES, CHAIN_PROBES)
        return cls(costs)

    def for_batch(self, texts: int) -> Planner:
        """The planner for steps that so many texts take together; itself for one.

        It shares what is learnt of acceptance, and has costs and times of its own; made once for
        each number of texts. Every text's tokens count alike, so the shape that makes most tokens
        a second for one text of the batch makes most for all. Gains shrink as the batch grows: its
        plain step already reads the weights once for all texts.
        """
        if texts == 1:
            return self
        if texts not in self._for_batches:
            made = Planner(self.costs.for_batch(texts), self._candidates, self._probes)
            made.acceptance = self.acceptance
            made.copies = CopyPlanner(made, self.copies.acceptance)
            made._trees = self._trees_of.setdefault(made.probe, made._trees)
            made._probes_left = 0 if made._trees else FIRST_PROBES
            self._for_batches[texts] = made
        return self._for_batches[texts]

    @property
    def choice(self) -> BeamShape | None:
        """The shape last chosen; None is plain decoding."""
        return self._choice

    @property
    def undecided(self) -> bool:
        """Whether there is no choice yet, or a new one is being tried for."""
        pending = self._probes_left > 0 or self._steps_to_replan <= 0
        return self._choice is None and pending

    @property
    def drafting_disabled(self) -> bool:
        """Whether drafts were tried, did not pay, and decoding is plain for now."""
        return self._choice is None and len(self._trees) > 0 and not self.undecided

    @property
    def probing(self) -> bool:
        """Whether the next draft is to tell what other shapes would yield."""
        return self._probes_left > 0

    def next_shape(self, context: int) -> BeamShape | None:
        """The shape for the next step after ``context`` tokens; None is a plain step."""
        if self._probes_left > 0:
            return self.probe
        if self._steps_to_replan <= 0:
            self._plan(context)
        return self._choice

    @property
    def drafts_next(self) -> bool:
        """Whether drafts cost so little that one is made before it is known whether it is wanted.

        Behind a text's last step it is not; but a draft that was made with the step before it can
        be read, and only what is worth it verified, at no evaluation more.
        """
        draft = self.costs.draft_seconds(self._choice or self.probe)
        return draft <= CHEAP_DRAFT * self.costs.step_seconds(None, 0)

    def num_nodes_to_verify(self, shape: BeamShape, tree: HostTree, context: int) -> int:
        """How many nodes of a draft to verify, from the first on.

        All of a draft that is to tell what other shapes would yield; else as many as promise more
        tokens than decoding makes in the time they take.
        """
        drafted = len(tree.tokens) - 1
        if self._taken == 0 or (shape == self.probe and self._probes_left > 0):
            return drafted
        chance = self.acceptance.chances
        chances = [chance[kind] for kind in kinds_of(tree)[1:]]
        counts = [size - 1 for size in self.costs.sizes if size - 1 < drafted] + [drafted]
        drift = self._drift[False]
        count = num_nodes_to_verify(
            chances,
            counts,
            lambda rows: drift * self.costs.verify_seconds(rows, context),
            self._made / self._taken,
        )
        if shape == self.probe and count < drafted:
            self._remember(tree)  # what is verified whole is remembered when it is observed
        return count

    def guess_chances(self, tree: HostTree) -> list[float]:
        """The chance of each node of a draft to be accepted, 1 for the root."""
        chances = self.acceptance.chances
        return [1.0, *(chances[kind] for kind in kinds_of(tree)[1:])]

    # What copies are priced by, see CopyPlanner

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of rows whose forward was timed."""
        return self.costs.sizes

    @property
    def rate(self) -> float:
        """Tokens a second, as decoding goes on the whole."""
        return self._made / self._taken if self._taken else 1.0 / self._plain_seconds(0)

    def plain_seconds(self, context: int) -> float:
        """Seconds of a plain step by now."""
        return self._plain_seconds(context)

    def verify_seconds(self, rows: int, context: int) -> float:
        """Seconds of a forward over so many rows by now."""
        return self.costs.verify_seconds(rows, context) * self._drift[False]

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft by now."""
        return self.costs.draft_seconds(shape) * self._drift[False]

    def guessed(self, shape: BeamShape) -> float:
        """Guesses accepted in a step of that shape; 0 where nothing is known of it."""
        accepted, _ = self._expected()
        return dict(zip(self._candidates, accepted, strict=True)).get(shape, 0.0)

    def forecasts(self, context: int) -> list[Forecast]:
        """Every choice with what it promises, plain decoding first."""
        result = [Forecast(None, 1.0, self._plain_seconds(context))]
        for shape, accepted, whole in zip(self._candidates, *self._expected(), strict=True):
            seconds = self.costs.step_seconds(
                shape, context, kept=1.0 + accepted, rejected=1.0 - min(1.0, whole)
            )
            result.append(Forecast(shape, 1.0 + accepted, seconds * self._drift[False]))
        return result

    def _plain_seconds(self, context: int) -> float:
        """What a plain step takes, by the stored costs and what was measured since."""
        return self.costs.step_seconds(None, context) * self._drift[True]

    def observe(self, step: ObservedStep) -> None:
        """Learn from a step."""
        shape, records, nodes = step.shape, step.records, step.nodes
        self._steps_to_replan -= 1
        self._probes_left -= self._probes_left > 0 and shape == self.probe
        expected = self._expected_seconds(step)
        # The first step of a kind may have waited for a GPU's compiler, for its own draft's sake or
        # for that of the draft it makes ahead.
        kind = (shape, nodes, step.next_shape)
        if kind in self._timed:
            self._made = RATE_FORGET * self._made + step.tokens
            self._taken = RATE_FORGET * self._taken + step.seconds
            ratio = min(4.0, max(0.25, step.seconds / expected))
            self._drift[nodes == 0] += DRIFT_RATE * (ratio - self._drift[nodes == 0])
        self._timed.add(kind)
        if shape is None:
            if self._choice is None and not nodes:  # and not merely a sequence's back-off
                self._wait_for_trial()
            return
        for record in records:
            self.acceptance.observe(record.guessed)
        if shape == self.probe and nodes == shape.nodes:
            on_trial = self._choice != self.probe
            # Where the probe pays, one text's tree a step is enough, and quickly counted.
            for record in records if on_trial else records[:1]:
                self._remember(record.guessed.tree)
            if on_trial:
                self._probes_left = max(0, self._probes_left - len(records) + 1)
                self._steps_to_replan = 0
            return
        self._steps_to_probe -= 1
        if self._steps_to_probe <= 0:
            self._schedule_probe()

    def price(self, step: ObservedStep) -> float | None:
        """Expected time of an observed step in plain steps; None for plain steps and probes."""
        if step.shape is None or (step.shape == self.probe and step.nodes == step.shape.nodes):
            return None
        expected = self._expected_seconds(step) * self._drift[False]
        return expected / self._plain_seconds(step.context)

    def _expected_seconds(self, step: ObservedStep) -> float:
        """By the stored costs. A replay is part of the next step's time: right on average only."""
        if step.shape is None and step.nodes:  # copies alone
            return self.costs.verify_seconds(1 + step.nodes, step.context)
        return self.costs.step_seconds(
            step.shape, step.context, nodes=step.nodes, kept=step.tokens, rejected=step.rejected
        )

    def _schedule_probe(self) -> None:
        """Look again at what other shapes would yield, more rarely while that changes nothing."""
        first, longest = PROBE_STEPS
        same = self._choice == self._probed
        self._probe_gap = min(2 * self._probe_gap, longest) if same else first
        self._probes_left, self._steps_to_probe = 1, self._probe_gap
        self._probed = self._choice

    def _wait_for_trial(self) -> None:
        """While decoding plainly, draft again now and then, ever more rarely while it fails."""
        self._steps_to_trial -= 1
        if self._steps_to_trial <= 0:
            wasted = self.costs.step_seconds(self.probe, 0) / self.costs.step_seconds(None, 0)
            self._trial_steps = max(2 * self._trial_steps, math.ceil(wasted / TRIAL_SHARE))
            self._steps_to_trial = self._trial_steps
            self._probes_left = 1

    def _plan(self, context: int) -> None:
        plain, *drafted = self.forecasts(context)
        best = max(drafted, key=lambda forecast: forecast.tokens_per_second)
        pays = best.tokens_per_second > MARGIN * plain.tokens_per_second
        if pays:
            self._trial_steps = self._steps_to_trial = FIRST_TRIAL_STEPS
        self._choice = best.shape if pays else None
        self._steps_to_replan = REPLAN_STEPS if pays else REPLAN_PLAIN_STEPS

    def _remember(self, tree: HostTree) -> None:
        """Keep, for each candidate, how many of its nodes are of each kind.

        A second table counts only its deepest nodes, whose acceptance accepts a chain as a whole.
        """
        kinds = kinds_of(tree)
        counts = np.zeros((2, len(self._candidates), KINDS))
        for row, shape in enumerate(self._candidates):
            for node in subtree(tree, shape):
                counts[0, row, kinds[node]] += 1
                counts[1, row, kinds[node]] += tree.depths[node] == shape.length
        self._trees.append(counts)

    def _expected(self) -> tuple[list[float], list[float]]:
        """For each candidate, a step's accepted tokens and the chance of its whole length."""
        if not self._trees:
            return [0.0] * len(self._candidates), [0.0] * len(self._candidates)
        mean = np.mean(np.stack(self._trees), axis=0) @ np.array(self.acceptance.chances)
        accepted, whole = mean.tolist()
        return accepted, whole
