"""Batches of prompts: tokens a second in all, drafted and plain, as the batch grows.

    python experiments/batches.py [--model models/pocket] [--batches 1 2 4 8]

Runs are interleaved: every repeat goes through all batch sizes and engines, in rotating order, and
medians are shown. Seconds are whole runs over all prompts, prefill included; ratios are between
the drafted and the plain run of the same repeat and batch size. Drafted texts are compared with the
plain ones of the first batch size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interleaved import ROOT, read_prompts
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_redrafter import AcceptanceStats, BatchResponse, RedrafterError, batch_generate, load
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.ui.cli.benchmark_view import circumstances

ENGINES = ("plain", "drafted")


@dataclass
class Case:
    """One engine at one batch size.

    Attributes:
        rates: Tokens a second of each repeat, all texts together and their prompts' time counted.
        texts: The token ids of the first repeat.
        stats: Counts of all texts of all repeats.
    """

    rates: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)

    def add(self, response: BatchResponse) -> None:
        """Take a repeat in."""
        self.rates.append(response.stats.generation_tokens / response.stats.wall_time)
        self.texts = self.texts or response.token_ids
        for stats in response.stats.acceptance:
            self.stats.merge(stats)


def measure(model: Any, tokenizer: Any, prompts: list[Any], args: Any) -> dict[Any, Case]:
    """All cases, by (engine, batch size)."""
    order = [(engine, batch) for batch in args.batches for engine in ENGINES]
    cases = {key: Case() for key in order}
    rounds = range(args.repeats + 1)  # the first warms up
    for repeat in track(rounds, console=Console(stderr=True), transient=True):
        turn = repeat % len(order)
        for engine, batch in order[turn:] + order[:turn]:
            response = batch_generate(
                model,
                tokenizer,
                prompts,
                max_tokens=args.max_tokens,
                batch_size=batch,
                temperature=args.temp,
                seed=args.seed,
                draft=engine == "drafted",
                remember=False,
                beam_width=args.beam_width,
                beam_length=args.beam_length,
                node_budget=args.node_budget,
            )
            if repeat:
                cases[engine, batch].add(response)
    return cases


def table(cases: dict[Any, Case], args: Any) -> Table:
    """What was measured."""
    made = Table(title=f"{args.model}, temperature {args.temp:g}")
    for name in ("batch", "plain tok/s", "drafted tok/s", "drafted / plain", "tokens per step",
                 "texts equal plain"):  # fmt: skip
        made.add_column(name, justify="right")
    reference = cases["plain", args.batches[0]].texts
    for batch in args.batches:
        plain, drafted = (cases[engine, batch] for engine in ENGINES)
        ratios = [b / a for a, b in zip(plain.rates, drafted.rates, strict=True)]
        equal = sum(a == b for a, b in zip(reference, drafted.texts, strict=True))
        made.add_row(
            str(batch),
            f"{statistics.median(plain.rates):.1f}",
            f"{statistics.median(drafted.rates):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{drafted.stats.tokens_per_step:.2f}",
            f"{equal} of {len(reference)}",
        )
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/pocket")
    parser.add_argument("--prompts", type=Path, default=ROOT / "models/pocket/questions.jsonl")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--count", type=int, default=16, help="prompts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beam-width", type=int, help="without a shape the planner chooses")
    parser.add_argument("--beam-length", type=int)
    parser.add_argument("--node-budget", type=int)
    args = parser.parse_args()
    try:
        model, tokenizer = load(args.model)
        prompts = read_prompts(args.prompts, args.count)
        cases = measure(model, tokenizer, prompts, args)
    except RedrafterError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        sys.exit(2)
    console = Console()
    console.print(table(cases, args))
    console.print(circumstances(environment(sys.argv[1:], "python experiments/batches.py")))


if __name__ == "__main__":
    main()
