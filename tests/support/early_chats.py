"""Chats whose drafts are made in the graph of the step before them, where they are cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from planning_machines import PLAIN, Chat, Watching

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.planner import Planner


class Drafted(Protocol):
    """A text: how drafts go on it."""

    def step(self, shape: BeamShape | None) -> StepRecord:
        """A step at the present place that verifies all of a draft; plain without one."""

    def advance(self, tokens: int) -> None:
        """The present place is so many tokens further."""


@dataclass
class Launched:
    """A step that is under way.

    Attributes:
        record: How it will go.
        shape: What it verifies a part of; None for a plain step.
        before: What was drafted for it in the step before.
        after: What its own graph drafts for the next step.
        watched: Whether that is compared with the text.
        verified: Whether the next step may verify it.
        decided: Whether it is known what the next step drafts, if only nothing.
    """

    record: StepRecord = PLAIN
    shape: BeamShape | None = None
    before: BeamShape | None = None
    after: BeamShape | None = None
    watched: bool = False
    verified: bool = True
    decided: bool = False

    @property
    def is_plain(self) -> bool:
        return not self.record.drafted


@dataclass
class EarlyChat(Chat):
    """Decodes as the engine does where drafts may be made early; the planner says whether.

    Attributes:
        ahead: Share of a step that is computed while it is launched before the one before it was
            read: most of it on a CPU, nothing on a GPU.
        drafts: What each step verified and had made for it: (shape, nodes, drafted before).
        compared: Whether the latter is compared with the text.
        taken: What each step took but for noise and load.
    """

    ahead: float = 0.9
    drafts: list[tuple[BeamShape | None, int, BeamShape | None]] = field(default_factory=list)
    compared: list[bool] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    _launched: bool = False  # a draft is made that is going to be compared

    def answer(self, text: Drafted, tokens: int = 60) -> EarlyChat:
        """Decode an answer of at least so many tokens."""
        assert self.planner is not None
        self.planner.begin(temperature=self.temperature)
        watching, made, early, self._launched = Watching(), 0, False, False
        step = self._launch(self.planner, Launched(), watching, made)
        while made < tokens:
            following = self._overlapping(self.planner, step, watching, made, tokens)
            seconds = self._seconds(step, following, made, early=early)
            made += len(step.record.path)
            self.steps.append((step.shape, len(step.record.path), seconds))
            self.drafts.append((step.shape, step.record.drafted, step.before))
            self.compared.append(step.record.watched)
            text.advance(len(step.record.path))
            observed = self._observed(step, following, watching, seconds, made, early=early)
            self.planner.observe(observed)
            if step.after is not None and step.watched:
                self._compare(step, text.step(step.after), watching)
            early = following is not None
            step = following or self._next_step(self.planner, step, watching, text, made)
        return self

    def _launch(self, planner: Planner, step: Launched, watching: Watching, made: int) -> Launched:
        """Decide what its graph drafts for the next step."""
        idle = watching.idle and not self._launched
        plan = planner.plan
        watch = plan.watch if idle and made else None
        if watch is not None:
            step.after, step.watched, step.verified, step.decided = watch, True, False, True
        elif plan.early:
            step.decided = True
            step.after = plan.shape
            step.watched = idle and plan.watched
        self._launched |= step.watched
        return step

    def _compare(self, step: Launched, record: StepRecord, watching: Watching) -> None:
        """A draft is known that is to be compared with the text; of one that this cuts, how it goes
        is never known.
        """
        assert step.after is not None
        self._launched = record.cut
        if not record.cut:
            watching.begin(step.after, record, verified=step.verified)
        self.watches += not step.verified

    def _overlapping(
        self, planner: Planner, step: Launched, watching: Watching, made: int, tokens: int
    ) -> Launched | None:
        """A plain step after a plain one, launched before that is read."""
        if not step.is_plain or made + 1 >= tokens or self._shape_after(planner, step):
            return None
        return self._launch(planner, Launched(), watching, made + 1)

    @staticmethod
    def _shape_after(planner: Planner, step: Launched) -> BeamShape | None:
        if step.decided:
            return step.after if step.verified else None
        return planner.plan.shape

    def _next_step(
        self, planner: Planner, step: Launched, watching: Watching, text: Drafted, made: int
    ) -> Launched:
        """What is launched once a step was read."""
        shape = self._shape_after(planner, step)
        record = text.step(shape)
        following = Launched(record, shape)
        if shape is not None and step.decided:
            kept = planner.num_nodes_to_verify(record.tree, made)
            shown = shape if kept else None
            record = replace(first(record, kept), watched=step.watched)
            following = Launched(record, shown, shape)
        return self._launch(planner, following, watching, made)

    def _seconds(
        self, step: Launched, following: Launched | None, made: int, *, early: bool
    ) -> float:
        own, plain = self._own_seconds(step, made), self.truth.step_seconds(None, made)
        ahead = self._own_seconds(following, made) if following is not None else 0.0
        seconds = own * (1.0 - self.ahead * early) + self.ahead * ahead
        if step.is_plain and not early:
            seconds += (self.alone - 1.0) * plain
        self.taken.append(seconds)
        noise = math.exp(self.noise * self.rng.gauss(0, 1))
        return seconds * noise * self.load(len(self.steps))

    def _own_seconds(self, step: Launched, made: int) -> float:
        """What its graph takes."""
        rows = 1 + step.record.drafted
        plain = self.truth.step_seconds(None, made)
        seconds = plain if step.is_plain else self.truth.check_seconds(rows, made)
        own = step.shape if step.before is None else None
        return seconds + sum(self.truth.draft_seconds(one) for one in (own, step.after) if one)

    def _observed(
        self,
        step: Launched,
        following: Launched | None,
        watching: Watching,
        seconds: float,
        made: int,
        *,
        early: bool,
    ) -> ObservedStep:
        return ObservedStep(
            step.shape,
            [step.record],
            seconds,
            made - len(step.record.path),
            next_shape=step.after,
            next_watched=step.watched,
            watching=not step.verified,
            drafted_before=step.before,
            watched=watching.follow(len(step.record.path)),
            early=early,
            overlapped=following is not None,
            overlapped_draft=following.after if following is not None else None,
        )


def first(record: StepRecord, count: int) -> StepRecord:
    """A step that verifies the first ``count`` nodes of a draft only."""
    if count >= record.drafted:
        return record
    path = tuple(node for node in record.path if node <= count)
    tree, choices = record.tree.pick(range(1 + count)), record.choices[: 1 + count]
    return StepRecord(tree, choices, path, cut=record.cut)
