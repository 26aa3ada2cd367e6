"""Copies of the text, a draft head, and both in one tree, by task: tokens a step and speed.

    python experiments/copies.py                              the pocket model
    python experiments/copies.py --model MODEL --drafter HEAD --tasks edit quote json
    python experiments/copies.py --model MODEL --fixed 4 5 15 --steps-only

The tasks are experiments/tasks/*.jsonl, 20 prompts each: four whose answers repeat the prompt or
themselves (edit, quote, json, table), two that use their prompt (retrieval, summary), and one that
repeats nothing (open). Any other file of prompts can be named too. Runs are interleaved: each
prompt goes through all contestants before the next, in rotating order, and every repeat yields its
own ratios, of which medians are shown. With --remember an answer may be copied from those to the
task's earlier prompts in the same repeat, too. "x mlx-lm" is of whole answers, prompt included,
"generation" after the first token, as mlx-lm counts its tokens a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
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

from mlx_redrafter import SpeculativeModel, load
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.planning.planner_for import planner_for
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.ui.cli.benchmark_view import circumstances

TASKS = Path(__file__).resolve().parent / "tasks"
REPEATING = ("edit", "quote", "json", "table")
ALL_TASKS = (*REPEATING, "retrieval", "summary", "open")
PLAIN, HEAD, COPIES, BOTH = "plain", "head", "copies", "both"


def prompts_of(task: str, count: int) -> list[Any]:
    """Prompts of one of the tasks, or of a file."""
    path = TASKS / f"{task}.jsonl" if task in ALL_TASKS else Path(task)
    return read_prompts(path, count)


def contestants(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The models of the contestants, which share a target, by name; and the tokenizer."""
    model, tokenizer = load(args.model, drafter=args.drafter, plan=False)
    name = f"{model.name}, no head"
    alone = SpeculativeModel(model.target, None, name, config=model.config)
    models = {MLX_LM: model, PLAIN: model, COPIES: alone}
    if model.drafter is not None:
        models |= {HEAD: model, BOTH: model}
    if not args.fixed:
        alone.planner = planner_for(alone, at_once=False)
        if model.drafter is not None:
            model.planner = planner_for(model)
    return {name: models[name] for name in models if _takes_part(name, args)}, tokenizer


def _takes_part(name: str, args: argparse.Namespace) -> bool:
    if args.steps_only and name in (MLX_LM, PLAIN):
        return False
    return args.only is None or name in args.only


def drafting(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """How one contestant drafts."""
    width, length, budget = args.fixed or (None, None, None)
    return {
        "draft": name != PLAIN,
        "copy": name in (COPIES, BOTH),
        "remember": args.remember,
        "beam_width": width,
        "beam_length": length,
        "node_budget": budget,
    }


def summarise(repeats: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the repeats, tokens a step, and whether the texts are the same."""
    last = repeats[-1]
    result: dict[str, Any] = {}
    for name, run in last.items():
        rate = statistics.median(runs[name].rate for runs in repeats)
        row: dict[str, Any] = {"tokens_per_second": rate, "tokens": run.tokens}
        for other in (MLX_LM, PLAIN):
            if other in last:
                generation = ratios(repeats, name, other, "generation_rate")
                row[f"over_{other}"] = statistics.median(ratios(repeats, name, other))
                row[f"generation_over_{other}"] = statistics.median(generation)
        if run.stats.steps:
            row["stats"] = run.stats.to_dict()
        first = next(iter(last.values()))
        row["same_texts"] = same_texts(run, first)
        result[name] = row
    return result


def table(title: str, results: dict[str, dict[str, Any]]) -> Table:
    """All tasks and contestants."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("task")
    grid.add_column("")
    columns = ("per step", "copied", "tokens/s", "x mlx-lm", "generation", "x plain", "same")
    ratios = ("over_mlx-lm", "generation_over_mlx-lm", "over_plain")
    for column in columns:
        grid.add_column(column, justify="right")
    for task, result in results.items():
        for name, row in result.items():
            stats = row.get("stats")
            copied = stats["by_source"]["copied"] / max(1, stats["steps"]) if stats else 0.0
            grid.add_row(
                task,
                name,
                f"{stats['tokens_per_step']:.2f}" if stats else "",
                f"{copied:.2f}" if copied else "",
                f"{row['tokens_per_second']:.1f}",
                *(f"{row[key]:.2f}" if key in row else "" for key in ratios),
                str(row["same_texts"]),
            )
        grid.add_section()
    return grid


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models/pocket"))
    parser.add_argument("--drafter", default=None)
    parser.add_argument("--tasks", nargs="+", default=list(ALL_TASKS), help="names, or files")
    parser.add_argument("--count", type=int, default=20, help="prompts a task (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fixed", type=int, nargs=3, metavar=("WIDTH", "LENGTH", "NODES"),
        help="a beam shape instead of the planner; copies share its nodes",
    )  # fmt: skip
    parser.add_argument("--remember", action="store_true", help="copy from earlier answers too")
    parser.add_argument(
        "--steps-only", action="store_true", help="leave out mlx-lm and plain decoding"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(MLX_LM, PLAIN, HEAD, COPIES, BOTH), help="contestants"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures to a file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    console = Console()
    models, tokenizer = contestants(args)
    where = environment(sys.argv[1:], "python experiments/copies.py")
    results: dict[str, dict[str, Any]] = {}

    def answer_of(name: str, ids: list[int]) -> Iterator[Any]:
        return answer(
            name, models[name], tokenizer, ids, max_tokens=args.max_tokens, temperature=args.temp,
            seed=args.seed, **drafting(name, args),
        )  # fmt: skip

    def forget() -> None:
        for model in models.values():
            if model.planner is not None:
                model.planner.copied.answers.clear()

    for task in args.tasks:
        prompts = [encode_prompt(tokenizer, prompt) for prompt in prompts_of(task, args.count)]
        repeats = measure(list(models), prompts, answer_of, args.repeats, task, forget)
        results[task] = summarise(repeats)
        if args.json is not None:
            report = {"environment": where.to_dict(), "model": args.model, "results": results}
            args.json.write_text(json.dumps(report), "utf-8")
    shape = "x".join(map(str, args.fixed[:2])) if args.fixed else "planned"
    title = f"{args.model}, {shape}, temperature {args.temp:g}, {args.count} prompts a task"
    console.print(table(title, results))
    console.print(circumstances(where))


if __name__ == "__main__":
    run_script(main)
