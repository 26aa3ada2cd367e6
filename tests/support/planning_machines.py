"""Machines and texts that the planner is tried on: steps without a model, and without a clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from mlx_redrafter.drafting.recorded import RecordedDraft, RecordedDrafts
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.engine.watch import WatchedDraft
from mlx_redrafter.planning.allowance import EARLY_TOKENS
from mlx_redrafter.planning.calibration import SIZES
from mlx_redrafter.planning.costs import CostModel, interpolated
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.shapes import candidate_shapes
from mlx_redrafter.tree import HostTree, accept

PLAIN = StepRecord(HostTree((0,), (-1,), (0.0,)), (1,), (0,))
Curve = Callable[[int], float]


def _points(*known: tuple[int, float]) -> Curve:
    sizes, seconds = zip(*known, strict=True)
    return lambda n: interpolated(n, sizes, seconds)


# What a forward over n tokens costs, in plain steps.
CURVES: dict[str, Curve] = {
    "M3 and M4: tiles of 5, then flat": lambda n: (
        1.0 if n <= 5 else 1.45 if n <= 10 else 1.75 if n <= 32 else 1.75 + 0.03 * (n - 32)
    ),
    "M1 and M2: one price from 6 to 32": lambda n: (
        1.0 if n == 1 else 1.2 if n == 2 else 1.5 if n <= 5 else 1.9 if n <= 32 else 3.0
    ),
    "H100, 4 bits: 8 cost half of one": _points(
        (1, 1.0), (2, 1.09), (4, 2.04), (6, 3.0), (8, 0.56), (12, 0.52), (16, 0.52), (32, 0.97),
        (64, 1.9),
    ),
    "OpenBLAS: 16 cost less than 8": _points(
        (1, 1.0), (2, 1.17), (3, 1.38), (4, 1.58), (6, 1.66), (8, 1.82), (10, 2.2), (12, 2.59),
        (13, 2.6), (16, 1.71), (20, 2.5), (24, 2.66), (32, 2.69), (64, 4.49),
    ),
    "flat": lambda n: 1 + 0.003 * n,
    "linear": float,
    "135 million on a CPU": _points(
        (1, 1.0), (4, 1.29), (8, 1.43), (16, 1.66), (32, 2.47), (64, 4.6)
    ),
}  # fmt: skip
M3, M1, H100, OPENBLAS, FLAT, LINEAR, CPU = CURVES


def costs_of(curve: Curve | str, level: float = 0.06) -> CostModel:
    """Costs of a machine, in plain steps."""
    at = CURVES[curve] if isinstance(curve, str) else curve
    row = tuple(at(size) for size in SIZES)
    draft = {1: level, 2: 1.15 * level, 4: 1.5 * level, 8: 2 * level}
    return CostModel(SIZES, (64,), (row,), draft, (row[0],))


@dataclass
class Text:
    """Draws trees and outcomes for any shape.

    Attributes:
        confidence: Probability that the drafter gives its favourite token.
        truth: Chance that the favourite really is the target's choice.
        others: Chance that one of the drafter's next two tokens is.
        seed: Of what is drawn.
    """

    confidence: float
    truth: float
    others: float = 0.0
    seed: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def advance(self, tokens: int) -> None:
        """The text goes on; all places of it are alike."""

    def step(self, shape: BeamShape | None) -> StepRecord:
        """One step; plain without a shape."""
        if shape is None:
            return PLAIN
        tree = self._tree(shape)
        choices = tuple(self._choice() for _ in tree.tokens)
        return StepRecord(tree, choices, tuple(accept(tree.tokens, tree.parents, choices)))

    def _choice(self) -> int:
        drawn = self.rng.random() - self.truth
        if drawn < 0:
            return 0
        return 1 if drawn < 0.6 * self.others else 2 if drawn < self.others else 99

    def _tree(self, shape: BeamShape) -> HostTree:
        tokens, parents, scores, beams = [0], [-1], [0.0], [0]
        for _ in range(shape.length):
            grown = []
            for beam in beams:
                for rank in range(shape.width):
                    chance = (1 - self.confidence) / 3 * 0.5**rank if rank else self.confidence
                    grown.append((scores[beam] + math.log(chance), rank, beam))
            grown.sort(reverse=True)
            beams = []
            for score, rank, beam in grown[: shape.width]:
                beams.append(len(tokens))
                tokens.append(rank)
                parents.append(beam)
                scores.append(score)
        order = [0, *sorted(range(1, len(tokens)), key=lambda n: -scores[n])[: shape.nodes]]
        place = {old: new for new, old in enumerate(order)}
        return HostTree(
            tuple(tokens[n] for n in order),
            tuple(place.get(parents[n], -1) for n in order),
            tuple(scores[n] for n in order),
        )


# A text that the drafter knows, one of a real model, and those that it cannot guess.
KNOWN, REAL = (0.97, 0.95, 0.0), (0.5, 0.46, 0.25)
BABBLE, OVERRATED = (0.3, 0.001, 0.0), (0.95, 0.03, 0.0)


def recorded_of(kind: tuple[float, float, float], count: int = 64) -> RecordedDrafts:
    """How drafts went on one kind of text when the head was trained."""
    shape, text = BeamShape(4, 11), Text(*kind, seed=77)
    records = [text.step(shape) for _ in range(count)]
    return RecordedDrafts(shape, tuple(RecordedDraft.of(one.tree, one.path) for one in records))


class Watching:
    """A draft that is only compared with the text, until it is known how it went."""

    def __init__(self) -> None:
        self._draft: WatchedDraft | None = None
        self._left = 0

    @property
    def idle(self) -> bool:
        """Whether there is none."""
        return self._draft is None

    def begin(self, shape: BeamShape, record: StepRecord, *, verified: bool = False) -> None:
        """One was made, of which the next step may verify a part."""
        self._draft = WatchedDraft(shape, RecordedDraft.of(record.tree, record.path), verified)
        self._left = min(shape.length, len(record.path))

    def follow(self, tokens: int) -> list[WatchedDraft]:
        """The text went on; how the draft went, once that is known."""
        self._left -= tokens
        if self._draft is None or self._left > 0:
            return []
        over, self._draft = self._draft, None
        return [over]


def after_first_tokens(planner: Planner) -> Planner:
    """A planner after the tokens of which next to nothing may be lost."""
    step = ObservedStep(None, [PLAIN], planner.costs.plain[0], 0, early=True, overlapped=True)
    planner.observe(replace(step, repeats=EARLY_TOKENS))
    return planner


@dataclass
class Chat:
    """Answers decoded step by step, by a planner or with one fixed shape.

    Attributes:
        truth: What steps really cost.
        planner: Chooses shapes.
        fixed: The shape without a planner.
        load: By how much another program slows a step down, told how many steps there were.
        temperature: At which answers are drawn.
        alone: How many times as long a plain step takes that overlaps with nothing.
        steps: Shape, tokens and seconds of each step.
        watches: Drafts that were only watched.
    """

    truth: CostModel
    planner: Planner | None = None
    fixed: BeamShape | None = None
    load: Callable[[int], float] = lambda _step: 1.0
    temperature: float = 0.0
    alone: float = 1.0
    noise: float = 0.05
    steps: list[tuple[BeamShape | None, int, float]] = field(default_factory=list)
    watches: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def answer(self, text: Text, tokens: int = 60) -> Chat:
        """Decode an answer of at least so many tokens."""
        if self.planner:
            self.planner.begin(temperature=self.temperature)
        made, shape, early = 0, self._next, False
        watch, watching = None, Watching()
        while made < tokens:
            # After a plain step the next one is chosen, and begins, before that is read.
            following = self._next if shape is None else None
            next_watch = self._next_watch if watching.idle and watch is None else None
            overlapped = shape is None and following is None and made + 1 < tokens
            record = text.step(shape)
            rejected = float(record.accepted < record.drafted)
            seconds = self.truth.step_seconds(
                shape, made, kept=len(record.path), rejected=rejected
            ) * self.load(len(self.steps))
            if watch is not None:
                seconds += self.truth.draft_seconds(watch) * self.load(len(self.steps))
            seconds *= math.exp(self.noise * self.rng.gauss(0, 1))
            if shape is None:
                # A CPU launches the next one, and with it does most of its work.
                seconds *= 1.0 + 0.9 * overlapped - 0.9 * early + (self.alone - 1) * (not early)
            if self.planner:
                self.planner.observe(
                    ObservedStep(
                        shape,
                        [record],
                        seconds,
                        made,
                        next_shape=watch,
                        watching=watch is not None,
                        watched=watching.follow(len(record.path)),
                        early=early,
                        overlapped=overlapped,
                    )
                )
            if watch is not None:
                self.watches += 1
                watching.begin(watch, text.step(watch))
            watch = next_watch if following is None else None
            made += len(record.path)
            self.steps.append((shape, len(record.path), seconds))
            early = overlapped
            shape = following if shape is None else self._next
        return self

    @property
    def _next_watch(self) -> BeamShape | None:
        return self.planner.plan.watch if self.planner else None

    @property
    def _next(self) -> BeamShape | None:
        return self.planner.plan.shape if self.planner else self.fixed

    def answers(self, kind: tuple[float, float, float], count: int, seed: int = 0) -> Chat:
        """Decode answers of one kind of text."""
        for number in range(count):
            self.answer(Text(*kind, seed=1000 * seed + number))
        return self

    def shapes(self, since: int = 0) -> list[BeamShape | None]:
        """What was drafted."""
        return [shape for shape, _, _ in self.steps[since:]]

    def speed(self, since: int = 0) -> float:
        """Tokens a second."""
        taken = self.steps[since:]
        return sum(tokens for _, tokens, _ in taken) / sum(seconds for _, _, seconds in taken)


@cache
def mean_tokens(kind: tuple[float, float, float], shape: BeamShape | None) -> float:
    """Tokens of a step, on average."""
    text = Text(*kind, seed=4242)
    return sum(len(text.step(shape).path) for _ in range(600)) / 600


def best_speed(kind: tuple[float, float, float], costs: CostModel) -> float:
    """Mean speed of the shape that is best throughout, tokens a second."""
    shapes = candidate_shapes(costs)
    return max(mean_tokens(kind, shape) / costs.step_seconds(shape, 0) for shape in shapes)


def worth(chat: Chat, since: int, kind: tuple[float, float, float], costs: CostModel) -> float:
    """Mean speed of the shapes that were chosen, by what each makes on average."""
    shapes = chat.shapes(since)
    tokens = {shape: mean_tokens(kind, shape) for shape in set(shapes)}
    made = sum(tokens[shape] for shape in shapes)
    return made / sum(costs.step_seconds(shape, 0) for shape in shapes)


class Cache:
    """A cache of which only the length is asked."""

    def __init__(self, length: int):
        self._length = length

    def __len__(self) -> int:
        return self._length
