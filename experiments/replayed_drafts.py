"""The planner on a real model's own drafts, played through again and again without the model.

    python experiments/replayed_drafts.py record DRAFTS --model smollm2 --prompts FILE [--temp 0]
    python experiments/replayed_drafts.py play DRAFTS [--seeds 24]

`record` answers questions plainly and keeps a wide draft from every token of the answers, with how
far the text goes along with it. `play` decodes them with the planner and with fixed shapes: what
each step makes is what was recorded, what it takes is the time of a machine laid down in the tests
(tests/support). From seed to seed change the order of the questions, small errors of the measured
costs, noise of five per cent a step and the machine's wandering speed, of which the latter two do
not count in the result. No clock is read, so a change of the planner by half a per cent can be seen
in a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from planned import Run, Subject
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simulated_chats import wander

from mlx_redrafter.drafting.next_draft import NextDraft
from mlx_redrafter.drafting.recorded import RecordedDrafts
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine import sequence
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.engine.watch import Watch, WatchedDraft
from mlx_redrafter.planning.acceptance import subtree
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.system.files import write_json
from mlx_redrafter.tree import HostTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
import planning_machines as machines
from early_chats import EarlyChat

RECORDED = BeamShape(8, 15)  # every shape that is considered is a part of it
LEVEL = 0.04  # what a drafted level costs, in plain steps
WRONG = 0.04  # errors of measured costs, standard deviation of their logarithms
SHAPES = (
    BeamShape(1, 1), BeamShape(1, 2), BeamShape(2, 2, 3), BeamShape(2, 3, 5), BeamShape(3, 4, 7),
    BeamShape(4, 5, 15),
)  # fmt: skip


# Recording


class EveryPlace(HeadlessPlanner):
    """Plain decoding with a wide draft beside every step."""

    plan = StepPlan(watch=RECORDED)

    def observe(self, step: ObservedStep) -> None:
        """Nothing is learnt."""


@dataclass
class Place:
    """A draft from one place of a text.

    Attributes:
        at: Tokens of the answer up to the draft's root.
        tree: The draft.
        path: How far the text goes along with it by now.
        over: Whether the text has left it.
    """

    at: int
    tree: HostTree
    path: list[int] = field(default_factory=lambda: [0])
    over: bool = False

    def follow(self, token: int) -> None:
        """The text goes on."""
        child = None if self.over else self.tree.child(self.path[-1], token)
        self.over = child is None
        if child is not None:
            self.path.append(child)


class AllWatched(Watch):
    """In place of a sequence's watch: any number of drafts are compared at once."""

    places: ClassVar[list[Place]] = []  # of the answer under way

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        AllWatched.places = []

    def launch(self) -> None:
        """Another may be launched all the same."""

    def begin(self, draft: NextDraft) -> None:
        """The text goes on after the draft's root."""
        assert draft.tree is not None
        self.places.append(Place(self._tokens, draft.tree.read()))

    def follow(self, tokens: Sequence[int]) -> None:
        """Compare all of them."""
        for token in tokens:
            self._tokens += 1
            for place in self.places:
                place.follow(token)

    def take(self) -> list[WatchedDraft]:
        """Nobody is told."""
        return []


def record(args: argparse.Namespace) -> None:
    """Answer questions and write every draft to a file."""
    subject = Subject.load(args.model)
    setattr(sequence, "Watch", AllWatched)  # noqa: B010
    planner, run, answers = EveryPlace(lambda: subject.costs), Run(), []
    prompts = subject.prompts(args.prompts, args.count)
    for seed, prompt in enumerate(track(prompts, transient=True, description="answers")):
        options = {"seed": seed, "temperature": args.temp, "max_tokens": args.max_tokens}
        subject.answer(run, prompt, planner=planner, copy=False, **options)
        drafts = [
            [place.at, list(place.tree.parents), _rounded(place.tree.log_probs), place.path]
            for place in AllWatched.places
        ]
        answers.append({"tokens": run.tokens[-1], "drafts": drafts})
    known = subject.model.recorded
    values = {"temperature": args.temp, "recorded": known.to_dict() if known else None}
    write_json(args.drafts, {**values, "answers": answers})


def _rounded(scores: Sequence[float]) -> list[float]:
    return [round(score, 3) for score in scores]


# Playing


class RecordedText:
    """One answer, from its second token on.

    Args:
        values: As it was recorded.
    """

    def __init__(self, values: dict[str, Any]):
        self.tokens: int = values["tokens"]
        self._trees = {
            at: (HostTree((0,) * len(parents), tuple(parents), tuple(scores)), tuple(path))
            for at, parents, scores, path in values["drafts"]
        }
        self._seen: dict[tuple[int, BeamShape], StepRecord] = {}
        self._at = 1

    def begin(self) -> RecordedText:
        """From the beginning again."""
        self._at = 1
        return self

    def advance(self, tokens: int) -> None:
        """So many more are known."""
        self._at += tokens

    def step(self, shape: BeamShape | None) -> StepRecord:
        """What a step makes here; plain where nothing was recorded."""
        if shape is None or self._at not in self._trees:
            return machines.PLAIN
        if (self._at, shape) not in self._seen:
            self._seen[self._at, shape] = self._drafted(shape)
        return self._seen[self._at, shape]

    def _drafted(self, shape: BeamShape) -> StepRecord:
        tree, path = self._trees[self._at]
        kept = [0, *subtree(tree, shape)]
        place = {node: index for index, node in enumerate(kept)}
        accepted = tuple(place[node] for node in path if node in place)
        left = 1 + self.tokens - self._at
        cut = len(accepted) > left
        return StepRecord(tree.pick(kept), (0,) * len(kept), accepted[:left], cut=cut)


@dataclass(frozen=True)
class Played:
    """A chat.

    Attributes:
        seconds: What it takes, in plain steps.
        tokens, steps: Made in how many steps.
    """

    seconds: float
    tokens: int
    steps: int

    @property
    def speed(self) -> float:
        """Over plain decoding."""
        return self.tokens / self.seconds


def fixed(
    texts: Sequence[RecordedText], shape: BeamShape, costs: CostModel, *, alone: float
) -> Played:
    """All texts with one shape, every draft verified whole.

    Args:
        texts: What is said.
        shape: What every step drafts.
        costs: What steps really cost.
        alone: What a plain step takes that overlaps with none, in plain steps.
    """
    seconds, steps = 0.0, 0
    for text in texts:
        at = 1
        text.begin()
        while at <= text.tokens:
            step = text.step(shape)
            if step.drafted:
                seconds += costs.check_seconds(1 + step.drafted, 0) + costs.draft_seconds(shape)
            else:
                seconds += alone * costs.plain[0]
            text.advance(len(step.path))
            at, steps = at + len(step.path), steps + 1
    return Played(seconds / costs.plain[0], sum(text.tokens for text in texts), steps)


def planned(
    texts: Sequence[RecordedText],
    costs: CostModel,
    recorded: RecordedDrafts | None,
    seed: int,
    *,
    temperature: float,
    alone: float,
) -> Played:
    """The same with a planner that begins afresh, by what its steps take but for noise and load.

    Args:
        texts: What is said; their order is drawn.
        costs: What steps really cost.
        recorded: What the planner is told of the head.
        seed: Of the order, the errors of the costs, the noise and the load.
        temperature: That the texts were drawn at.
        alone: As of :func:`fixed`.
    """
    rng = random.Random(seed)
    order = rng.sample(list(texts), len(texts))
    errors = {size: math.exp(rng.gauss(0, WRONG)) for size in costs.sizes}
    chat = EarlyChat(
        costs, Planner(costs.scaled(errors), watches=True, recorded=recorded),
        load=wander(rng, 0.99, 0.015), temperature=temperature, alone=alone, rng=rng,
    )  # fmt: skip
    for text in order:
        chat.answer(text.begin(), text.tokens)
    tokens = sum(tokens for _, tokens, _ in chat.steps)
    return Played(sum(chat.taken) / costs.plain[0], tokens, len(chat.steps))


def play(args: argparse.Namespace) -> None:
    """Show the planner's speed over that of the best fixed shape."""
    values = json.loads(args.drafts.read_text(encoding="utf-8"))
    texts = [RecordedText(one) for one in values["answers"]]
    recorded = RecordedDrafts.from_dict(values["recorded"]) if values["recorded"] else None
    costs = machines.costs_of(machines.CURVES[args.curve], LEVEL)
    table = Table(title=f"{args.drafts.name} on: {args.curve}", title_justify="left")
    for heading in ("", "tokens per step", "x plain", "worst twentieth below", "lowest"):
        table.add_column(heading, justify="right" if heading else "left")
    best = 1.0
    for shape in SHAPES:
        one = fixed(texts, shape, costs, alone=args.alone)
        best = max(best, one.speed)
        table.add_row(_name(shape), f"{one.tokens / one.steps:.2f}", f"{one.speed:.3f}")
    temperature = values["temperature"]
    play_once = partial(planned, texts, costs, recorded, temperature=temperature, alone=args.alone)
    chats = [play_once(seed) for seed in track(range(args.seeds), transient=True)]
    made = statistics.mean(one.tokens / one.steps for one in chats)
    speeds = sorted(one.speed for one in chats)
    shares = (statistics.mean(speeds), speeds[len(speeds) // 20], speeds[0])
    table.add_row("planned", f"{made:.2f}", *(f"{share:.3f}" for share in shares))
    table.add_row("over the best", "", *(f"{share / best:.3f}" for share in shares))
    Console().print(table)


def _name(shape: BeamShape) -> str:
    return f"{shape.width} x {shape.length}, {shape.nodes} nodes"


def main() -> None:
    """Record, or play what was recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    writes = commands.add_parser("record", help="answer questions and keep a draft of every place")
    writes.add_argument("--model", required=True)
    writes.add_argument("--prompts", type=Path, required=True, help="as of the benchmark")
    writes.add_argument("--count", type=int, default=20, help="questions, evenly from the file")
    writes.add_argument("--max-tokens", type=int, default=64)
    writes.set_defaults(run=record)
    plays = commands.add_parser("play", help="decode them with the planner and with fixed shapes")
    plays.add_argument("--seeds", type=int, default=24, help="chats with a planner")
    plays.add_argument("--curve", choices=list(machines.CURVES), default=machines.CPU)
    plays.add_argument(
        "--alone", type=float, default=1.05, help="a plain step that overlaps with none"
    )
    plays.set_defaults(run=play)
    writes.add_argument("--temp", type=float, default=0.0, help="temperature")
    for command in (writes, plays):
        command.add_argument("drafts", type=Path, help="file of drafts")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
