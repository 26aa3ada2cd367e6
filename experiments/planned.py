"""Questions decoded plainly and with drafts by turns, each with a planner that begins afresh.

    python experiments/planned.py --model models/pocket --count 20 --sweep

With --sweep fixed shapes take turns too, and the best of them is what the planner is compared with.
With --fresh every answer is also decoded with a planner that begins with it, as a first answer is.
The other scripts about the planner (never_slower.py, bad_beginnings.py) use what is here.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from interleaved import read_prompts, run_script
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_redrafter import Planner, load, stream_generate
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.planning.cost_store import load_costs
from mlx_redrafter.text.prompts import encode_prompt

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 64  # tokens before a step that forecasts are asked for
TOKENS_KNOWN = 200  # from which on they are compared with what is made
# Small trees and chains, of which one is best on most machines.
SHAPES = (
    BeamShape(1, 1), BeamShape(1, 2), BeamShape(1, 3), BeamShape(1, 5), BeamShape(1, 7),
    BeamShape(1, 11), BeamShape(1, 15), BeamShape(2, 2, 3), BeamShape(2, 3, 4), BeamShape(3, 4, 7),
    BeamShape(4, 4, 9), BeamShape(4, 5, 15),
)  # fmt: skip


@dataclass
class Run:
    """One way of decoding over some questions.

    Attributes:
        seconds: Of each answer's steps, its prompt left out.
        tokens: Of each answer's steps.
        texts: Tokens of each answer.
        steps: Target forwards.
    """

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    steps: int = 0

    def speed(self, first: int = 0, end: int | None = None) -> float:
        """Tokens a second over answers first to end; next to none where each was over at once."""
        return max(1e-9, sum(self.tokens[first:end])) / max(1e-9, sum(self.seconds[first:end]))


@dataclass(frozen=True)
class Subject:
    """A model with its tokenizer and costs.

    Attributes:
        model, tokenizer: As loaded.
        costs: Measured once, so that every planner begins with the same.
    """

    model: Any
    tokenizer: Any
    costs: Any

    @classmethod
    def load(cls, path: str, drafter: str | None = None, *, recalibrate: bool = False) -> Subject:
        """Load a model without a planner and measure its costs, if they are not known."""
        model, tokenizer = load(path, drafter, plan=False)
        return cls(model, tokenizer, load_costs(model, recalibrate=recalibrate))

    def planner(self) -> Planner:
        """A planner as it begins: it knows the costs, and what was recorded with the drafter."""
        return Planner.for_model(self.model, costs=self.costs)

    def prompts(self, path: Path, count: int, *, shuffle: int | None = None) -> list[list[int]]:
        """Token ids of questions, taken evenly from a file; in its order, or in a drawn one."""
        prompts = [self._encoded(prompt) for prompt in read_prompts(path, count)]
        if shuffle is not None:
            random.Random(shuffle).shuffle(prompts)
        return prompts

    def prompt(self, text: str) -> list[int]:
        """Token ids of a question."""
        return self._encoded([{"role": "user", "content": text}])

    def _encoded(self, prompt: Any) -> list[int]:
        """Token ids; without a chat template a question is bare text."""
        bare = not isinstance(prompt, str) and not self.tokenizer.has_chat_template
        return encode_prompt(self.tokenizer, prompt[-1]["content"] if bare else prompt)

    def answer(self, run: Run, prompt: Sequence[int], **options: Any) -> None:
        """Decode an answer and add it to a run."""
        tokens, response, started = [], None, 0.0
        for response in stream_generate(self.model, self.tokenizer, list(prompt), **options):
            tokens.append(response.token)
            if len(tokens) == 1:
                started = time.perf_counter()  # the first token is the prompt's
        assert response is not None
        run.seconds.append(time.perf_counter() - started)
        run.tokens.append(len(tokens) - 1)
        run.texts.append(tokens)
        run.steps += response.stats.steps


def by_turns(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    ways: dict[str, Callable[[], dict[str, Any]]],
    **options: Any,
) -> dict[str, Run]:
    """Each prompt goes through all ways before the next one, and who begins changes.

    A planner is asked each prompt once, so it may copy from its answers to those before.

    Args:
        subject: What decodes.
        prompts: Token ids.
        ways: By name what options a way adds.
        **options: For all of them.
    """
    runs = {name: Run() for name in ways}
    names = list(ways)
    for place, prompt in enumerate(track(prompts, transient=True, description="questions")):
        turn = place % len(names)
        for name in names[turn:] + names[:turn]:
            subject.answer(runs[name], prompt, seed=place, **options, **ways[name]())
    return runs


def plain() -> dict[str, Any]:
    """Options of plain decoding."""
    return {"draft": False}


def fixed(shape: BeamShape) -> Callable[[], dict[str, Any]]:
    """Options of drafts of one shape."""
    return lambda: {
        "beam_width": shape.width,
        "beam_length": shape.length,
        "node_budget": shape.node_budget,
    }


def planned(planner: Planner) -> Callable[[], dict[str, Any]]:
    """Options of planned drafts."""
    return lambda: {"planner": planner}


def first_answers(subject: Subject) -> Callable[[], dict[str, Any]]:
    """Options of planned drafts, with a planner that begins with each answer."""
    return lambda: {"planner": subject.planner()}


class Forecasting:
    """Options of planned drafts, with the speeds that were to be expected before each answer.

    Attributes:
        planner: It.
        promised: Tokens a second that `plan` promises, an answer each: of the shape that is drafted
            or, where none is, what decoding made of late.
        of_late: Tokens a second that decoding made of late, whatever is drafted; before that is
            known, what is promised.
    """

    def __init__(self, planner: Planner):
        self.planner = planner
        self.promised: list[float] = []
        self.of_late: list[float] = []

    def __call__(self) -> dict[str, Any]:
        planner = self.planner
        forecasts = {one.shape: one for one in planner.forecasts(CONTEXT)}
        chosen = forecasts.get(planner.choice) or forecasts[None]
        promised, made = chosen.tokens_per_second, planner.prices.speed(CONTEXT)
        self.of_late.append(promised if made is None else made)
        self.promised.append(promised if planner.choice is not None else self.of_late[-1])
        return {"planner": planner}


def over_made(expected: Sequence[float], run: Run) -> float | None:
    """Speed expected over speed made, of answers before which enough tokens were known."""
    before = [sum(run.tokens[:place]) for place in range(len(run.tokens))]
    told = [place for place, known in enumerate(before) if known >= TOKENS_KNOWN]
    seconds = sum(run.tokens[place] / expected[place] for place in told)
    return sum(run.seconds[place] for place in told) / seconds if told else None


def parser(text: str | None) -> argparse.ArgumentParser:
    """The flags that the scripts about the planner share."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default=str(ROOT / "models" / "pocket"))
    made.add_argument("--drafter", default=None)
    made.add_argument("--prompts", type=Path, default=None, help="default: the pocket's questions")
    made.add_argument("--count", type=int, default=20, help="questions")
    made.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="their order is drawn: in a file like questions may lie together",
    )
    made.add_argument("--max-tokens", type=int, default=64)
    made.add_argument("--temps", type=float, nargs="+", default=[0.0, 1.0])
    made.add_argument("--recalibrate", action="store_true", help="measure costs again")
    made.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return made


def asked(subject: Subject, args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the questions that the shared flags ask for."""
    path = args.prompts or ROOT / "models" / "pocket" / "questions.jsonl"
    return subject.prompts(path, args.count, shuffle=args.shuffle)


def sweep(subject: Subject, args: argparse.Namespace, temperature: float) -> dict[str, Any]:
    """Plain, planned and, with --sweep, fixed shapes."""
    shapes = (args.shapes or SHAPES) if args.sweep else ()
    if subject.model.target.verifies == "chain":
        shapes = tuple(shape for shape in shapes if shape.width == 1)
    planner = subject.planner()
    forecasting = Forecasting(planner)
    ways: dict[str, Callable[[], dict[str, Any]]] = {"plain": plain, "planned": forecasting}
    ways |= {_name(shape): fixed(shape) for shape in shapes}
    if args.fresh:
        ways["first answers"] = first_answers(subject)
    prompts = asked(subject, args)
    # Kernels, caches and the clock of the processor warm up before anything is counted.
    for way in (plain, *(fixed(shape) for shape in shapes)):
        subject.answer(Run(), prompts[0], max_tokens=12, temperature=temperature, **way())
    runs = by_turns(subject, prompts, ways, max_tokens=args.max_tokens, temperature=temperature)
    result = beside_plain(runs)
    result["planned"]["state"] = planner.state.value
    result["planned"]["choice"] = _name(planner.choice) if planner.choice else "plain"
    made = runs["planned"]
    result["planned"]["forecast_over_made"] = over_made(forecasting.promised, made)
    result["planned"]["of_late_over_made"] = over_made(forecasting.of_late, made)
    return result


def beside_plain(runs: dict[str, Run]) -> dict[str, dict[str, Any]]:
    """Figures of each way of decoding, over those of the one named plain."""
    base = runs["plain"]
    return {
        name: {
            "over_plain": run.speed() / base.speed(),
            "first_answer_over_plain": run.speed(0, 1) / base.speed(0, 1),
            "tokens_per_step": sum(run.tokens) / max(1, run.steps),
            "texts_equal": sum(a == b for a, b in zip(run.texts, base.texts, strict=True)),
        }
        for name, run in runs.items()
    }


def _shape(text: str) -> BeamShape:
    return BeamShape(*map(int, text.split("x")))


def _name(shape: BeamShape) -> str:
    budget = f", {shape.node_budget}" if shape.node_budget else ""
    return f"{shape.width} x {shape.length}{budget}"


def table(title: str, result: dict[str, Any]) -> Table:
    """The figures of a sweep."""
    grid = Table(title=title, title_justify="left")
    for name in ("", "x plain", "first answer", "tokens/step", "texts equal"):
        grid.add_column(name, justify="right" if name else "left")
    for name, row in result.items():
        grid.add_row(
            name, f"{row['over_plain']:.3f}", f"{row['first_answer_over_plain']:.2f}",
            f"{row['tokens_per_step']:.2f}", str(row["texts_equal"]),
        )  # fmt: skip
    return grid


def main() -> None:
    """Compare and print."""
    flags = parser(__doc__)
    flags.add_argument("--sweep", action="store_true", help="fixed shapes take turns too")
    flags.add_argument("--fresh", action="store_true", help="a planner for each answer, too")
    flags.add_argument(
        "--shapes", type=_shape, nargs="+", metavar="WxL[xN]", help="those of the sweep: 3x4x7"
    )
    args = flags.parse_args()
    console = Console(stderr=args.json)
    subject = Subject.load(args.model, args.drafter, recalibrate=args.recalibrate)
    report: dict[str, Any] = {"model": subject.model.name, "doubtful": subject.costs.doubtful}
    for temperature in args.temps:
        result = sweep(subject, args, temperature)
        report[f"{temperature:g}"] = result
        names = [name for name in result if name not in ("plain", "planned", "first answers")]
        best = max(names, key=lambda name: result[name]["over_plain"], default=None)
        title = f"{subject.model.name}, temperature {temperature:g}"
        if best:
            share = result["planned"]["over_plain"] / max(1.0, result[best]["over_plain"])
            report[f"{temperature:g}"]["planned"]["over_best_fixed"] = share
            title += f": planned is {share:.3f} of the best fixed shape ({best})"
        console.print(table(title, result))
        console.print(result["planned"])
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
