"""mlx-lm, plain and drafted decoding side by side, on the same weights in one process.

    python experiments/pocket.py                 the pocket model on held-out questions
    python experiments/pocket.py --model models/prose --prompts models/prose/prompts.jsonl

Runs are interleaved: each prompt goes through all engines before the next, in rotating order, and
every repeat yields its own ratios, of which medians are shown. Seconds are whole answers, prompt
included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from interleaved import (
    MLX_LM,
    ROOT,
    Run,
    answer,
    measure,
    ratios,
    read_prompts,
    run_script,
    same_texts,
)
from rich.console import Console
from rich.table import Table

from mlx_redrafter import Planner, load
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.benchmark.prompts import own_prompts
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.ui.cli.benchmark_view import circumstances

ENGINES = (MLX_LM, "plain", "drafted")


def drafting(engine: str, planner: Planner | None, args: argparse.Namespace) -> dict[str, Any]:
    """How one engine drafts."""
    return {
        "draft": engine == "drafted",
        "beam_width": args.beam_width,
        "beam_length": args.beam_length,
        "node_budget": args.node_budget,
        "planner": planner if engine == "drafted" else None,
    }


def summarise(repeats: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the repeats, and whether the texts are the same."""
    last = repeats[-1]
    result: dict[str, Any] = {}
    for engine in ENGINES:
        rates = [runs[engine].rate for runs in repeats]
        over = ratios(repeats, engine, MLX_LM)
        result[engine] = {
            "tokens_per_second": statistics.median(rates),
            "ratio_to_mlx_lm": statistics.median(over),
            "ratio_min": min(over),
            "ratio_max": max(over),
            "tokens": last[engine].tokens,
        }
    for engine in ("plain", "drafted"):
        result[engine]["stats"] = last[engine].stats.to_dict()
    result["drafted"]["ratio_to_plain"] = statistics.median(ratios(repeats, "drafted", "plain"))
    result["identical_plain_drafted"] = same_texts(last["plain"], last["drafted"])
    result["identical_plain_mlx_lm"] = same_texts(last["plain"], last[MLX_LM])
    result["prompts"] = len(last["plain"].texts)
    return result


def table(title: str, result: dict[str, Any]) -> Table:
    """The summary as a Rich table."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("engine")
    for name in ("tokens/s", "x mlx-lm", "min-max", "tokens/step", "drafting"):
        grid.add_column(name, justify="right")
    for engine in ENGINES:
        row = result[engine]
        cells = [
            engine,
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio_to_mlx_lm']:.2f}",
            f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}",
        ]
        if "stats" in row:
            stats = row["stats"]
            spent = stats["draft_seconds"] + stats["verify_seconds"]
            cells += [
                f"{stats['tokens_per_step']:.2f}",
                f"{100 * stats['draft_seconds'] / max(spent, 1e-9):.0f} %",
            ]
        grid.add_row(*cells)
    return grid


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models/pocket"))
    parser.add_argument("--drafter", default=None)
    parser.add_argument("--prompts", type=Path, default=None, help="default: the bundle's own")
    parser.add_argument("--count", type=int, default=40, help="prompts (default 40)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default 5)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temps", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beam-width", type=int, default=None)
    parser.add_argument("--beam-length", type=int, default=None)
    parser.add_argument("--node-budget", type=int, default=None)
    parser.add_argument("--planned", action="store_true", help="let the planner choose the shapes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def main() -> None:
    args = parse()
    console = Console(stderr=args.json)
    model, tokenizer = load(args.model, drafter=args.drafter, plan=False)
    planner = Planner.for_model(model) if args.planned else None
    rows = read_prompts(args.prompts or own_prompts(Path(args.model)), args.count)
    prompts = [encode_prompt(tokenizer, row) for row in rows]
    where = environment(sys.argv[1:], "python experiments/pocket.py")
    report: dict[str, Any] = {"environment": where.to_dict(), "model": args.model, "results": {}}
    for temperature in args.temps:
        label = "greedy" if temperature == 0 else f"temperature {temperature:g}"

        def answer_of(engine: str, ids: list[int], temperature: float = temperature) -> Any:
            return answer(
                engine, model, tokenizer, ids, max_tokens=args.max_tokens, temperature=temperature,
                seed=args.seed, **drafting(engine, planner, args),
            )  # fmt: skip

        result = summarise(measure(ENGINES, prompts, answer_of, args.repeats, label))
        report["results"][f"{temperature:g}"] = result
        same = f"{result['identical_plain_drafted']}/{result['prompts']} texts drafted = plain"
        if temperature == 0:
            same += f", {result['identical_plain_mlx_lm']}/{result['prompts']} plain = mlx-lm"
        console.print(table(f"{model.name}, temperature {temperature:g}; {same}", result))
    console.print(circumstances(where))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
