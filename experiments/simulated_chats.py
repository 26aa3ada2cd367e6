"""The planner on simulated machines whose costs are known wrongly, loaded in bursts, or drift.

    python experiments/simulated_chats.py [--seeds 8] [--json]

No model, no clock: the machines and texts are those of the tests (tests/support). A chat is sixteen
answers of sixty tokens. Shown is what the shapes that were chosen make on average, over what the
best single choice makes, with what watched drafts take.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import Planner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
import planning_machines as machines

Load = Callable[[int], float]
Kind = tuple[float, float, float]
MACHINES = {
    "135 million on a CPU": machines.CPU, "OpenBLAS": machines.OPENBLAS, "M3": machines.M3,
    "linear": machines.LINEAR,
}  # fmt: skip
TEXTS = {
    "known by heart": machines.KNOWN, "a real model's": machines.REAL,
    "hardly pays": (0.4, 0.32, 0.2), "overrated": machines.OVERRATED,
}  # fmt: skip
ANSWERS, TOKENS = 16, 60
WATCHED = BeamShape(4, 5)  # what a watched draft is charged as


def steady(_rng: random.Random) -> Load:
    """No other program."""
    return lambda _step: 1.0


def bursts(rng: random.Random) -> Load:
    """Other programs come for some 25 steps, and slow them down by up to five times."""
    left, factor = 0, 1.0

    def load(_step: int) -> float:
        nonlocal left, factor
        if left <= 0 and rng.random() < 0.02:
            left, factor = int(rng.expovariate(1 / 25)) + 1, rng.choice((1.3, 1.5, 2.0, 3.0, 5.0))
        left -= 1
        return factor * math.exp(0.2 * rng.gauss(0, 1)) if left >= 0 else 1.0

    return load


def wander(rng: random.Random, kept: float = 0.995, spread: float = 0.03) -> Load:
    """The machine's speed goes up and down: of its logarithm so much is kept a step, and so much
    added.
    """
    level = 0.0

    def load(_step: int) -> float:
        nonlocal level
        level = kept * level + rng.gauss(0, spread)
        return math.exp(level)

    return load


@dataclass(frozen=True)
class Disturbance:
    """What makes costs and times unlike each other; errors are standard deviations of logarithms.

    Attributes:
        plain, drafted, size: Of what a plain step, all others, and each number of rows costs.
        load: What other programs do.
        noise: Of a step.
    """

    plain: float = 0.0
    drafted: float = 0.0
    size: float = 0.0
    load: Callable[[random.Random], Load] = steady
    noise: float = 0.05


DISTURBANCES = {
    "none": Disturbance(),
    "wrong costs": Disturbance(0.2, 0.2, 0.05, noise=0.08),
    "bursts of load": Disturbance(0.05, 0.1, 0.03, bursts, 0.08),
    "drift": Disturbance(0.05, 0.1, 0.03, wander, 0.1),
}


@dataclass(frozen=True)
class Result:
    """How a chat went.

    Attributes:
        machine, text, disturbance: Names of what it was.
        share: Speed over that of the best single choice.
    """

    machine: str
    text: str
    disturbance: str
    share: float


def believed(curve: str, disturbance: Disturbance, rng: random.Random) -> CostModel:
    """Costs as they were measured."""
    costs = machines.costs_of(curve)
    drafted = math.exp(rng.gauss(0, disturbance.drafted))
    plain = math.exp(abs(rng.gauss(0, disturbance.plain)))  # load makes a measurement longer
    factors = {
        size: plain if size == 1 else drafted * math.exp(rng.gauss(0, disturbance.size))
        for size in costs.sizes
    }
    return costs.scaled(factors)


def share(curve: str, kind: Kind, given: Disturbance, recorded: bool, seed: str) -> float:
    """Speed of a planned chat over that of the best single choice, plain decoding among them."""
    truth, rng = machines.costs_of(curve), random.Random(seed)
    drafts = machines.recorded_of(kind) if recorded else None
    planner = Planner(believed(curve, given, rng), watches=True, recorded=drafts)
    load = given.load(rng)
    chat = machines.Chat(truth, planner, load=load, alone=1.3, noise=given.noise)
    for number in range(ANSWERS):
        chat.answer(machines.Text(*kind, seed=rng.getrandbits(32) + number), TOKENS)
    shapes = chat.shapes()
    tokens = sum(machines.mean_tokens(kind, shape) for shape in shapes)
    seconds = sum(truth.step_seconds(shape, 0) for shape in shapes)
    seconds += chat.watches * truth.draft_seconds(WATCHED)
    best = max(machines.best_speed(kind, truth), 1 / truth.plain[0])
    return tokens / seconds / best


def results(seeds: int) -> Iterator[Result]:
    """Every machine, text and disturbance, with recorded drafts and without."""
    cases = [(m, t, d) for m in MACHINES for t in TEXTS for d in DISTURBANCES]
    for machine, text, name in track(cases, transient=True, description="chats"):
        for recorded in (False, True):
            for seed in range(seeds):
                made = share(
                    MACHINES[machine], TEXTS[text], DISTURBANCES[name], recorded,
                    f"{machine} {text} {name} {seed}",
                )  # fmt: skip
                yield Result(machine, text, name, made)


def figures(shares: Sequence[float]) -> tuple[float, float, float]:
    """(mean, bound of the worst twentieth, lowest)."""
    ordered = sorted(shares)
    return statistics.mean(ordered), ordered[len(ordered) // 20], ordered[0]


def main() -> None:
    """Decode all chats and show their shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8, help="chats of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    found = list(results(args.seeds))
    groups = {"all": [one.share for one in found]}
    for one in found:
        for name in (one.machine, f"text: {one.text}", f"disturbed by: {one.disturbance}"):
            groups.setdefault(name, []).append(one.share)
    if args.json:
        print(json.dumps({name: figures(shares) for name, shares in groups.items()}))
        return
    table = Table(title=f"speed over the best choice's, {len(found)} chats", title_justify="left")
    for heading in ("", "mean", "worst twentieth below", "lowest"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, shares in groups.items():
        table.add_row(name, *(f"{figure:.3f}" for figure in figures(shares)))
    Console().print(table)


if __name__ == "__main__":
    main()
