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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from mlx_lm.generate import stream_generate as mlx_lm_stream
from mlx_lm.sample_utils import make_sampler
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_redrafter import AcceptanceStats, Planner, RedrafterError, load, stream_generate
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.benchmark.prompts import own_prompts
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.ui.cli.benchmark_view import circumstances

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("mlx-lm", "plain", "drafted")


@dataclass
class Run:
    """One engine over all prompts of one repeat."""

    seconds: float = 0.0
    tokens: int = 0
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    texts: list[list[int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def read_prompts(path: Path, count: int) -> list[Any]:
    """Prompts of a JSONL file: {"question"}, {"messages"}, {"prompt"} or {"text"}, one a line."""
    prompts: list[Any] = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "question" in row:
            prompts.append([{"role": "user", "content": row["question"]}])
        elif "messages" in row:
            prompts.append(row["messages"])
        else:
            prompts.append(row.get("prompt") or row["text"])
    step = max(1, len(prompts) // count)
    return prompts[::step][:count]


def answer(
    engine: str, model: Any, tokenizer: Any, ids: list[int], args: Any, temperature: float
) -> Iterator[Any]:
    """Responses of one engine for one prompt."""
    if engine == "mlx-lm":
        mx.random.seed(args.seed)
        model.target.take_cores(1)  # as plain decoding here has them
        return mlx_lm_stream(
            model.target.model,
            tokenizer,
            ids,
            max_tokens=args.max_tokens,
            sampler=make_sampler(temp=temperature),
        )
    return stream_generate(
        model,
        tokenizer,
        ids,
        max_tokens=args.max_tokens,
        temperature=temperature,
        seed=args.seed,
        draft=engine == "drafted",
        beam_width=args.beam_width,
        beam_length=args.beam_length,
        node_budget=args.node_budget,
        planner=args.planner if engine == "drafted" else None,
    )


def time_answer(run: Run, responses: Iterator[Any]) -> None:
    """Consume one answer and add it to ``run``."""
    tokens: list[int] = []
    response = None
    start = time.perf_counter()
    for response in responses:
        tokens.append(response.token)
    run.seconds += time.perf_counter() - start
    run.tokens += len(tokens)
    run.texts.append(tokens)
    if isinstance(getattr(response, "stats", None), AcceptanceStats):
        run.stats.merge(response.stats)  # type: ignore[union-attr]


def measure(
    model: Any, tokenizer: Any, prompts: list[list[int]], args: Any, temperature: float
) -> list[dict[str, Run]]:
    """Runs of every engine, one dictionary a repeat; the first, a warm-up, is left out."""
    repeats = []
    label = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    for repeat in track(range(args.repeats + 1), description=label, transient=True):
        runs = {engine: Run() for engine in ENGINES}
        for index, ids in enumerate(prompts[:2] if repeat == 0 else prompts):
            turn = (index + repeat) % len(ENGINES)
            for engine in ENGINES[turn:] + ENGINES[:turn]:
                time_answer(runs[engine], answer(engine, model, tokenizer, ids, args, temperature))
        if repeat:
            repeats.append(runs)
    return repeats


def summarise(repeats: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the repeats, and whether the texts are the same."""
    last = repeats[-1]
    result: dict[str, Any] = {}
    for engine in ENGINES:
        rates = [runs[engine].rate for runs in repeats]
        ratios = [runs[engine].rate / runs["mlx-lm"].rate for runs in repeats]
        result[engine] = {
            "tokens_per_second": statistics.median(rates),
            "ratio_to_mlx_lm": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "tokens": last[engine].tokens,
        }
    for engine in ("plain", "drafted"):
        stats = last[engine].stats
        result[engine]["stats"] = stats.to_dict()
        result[engine]["evaluations_per_step"] = stats.evaluations / max(1, stats.steps)
    result["drafted"]["ratio_to_plain"] = statistics.median(
        runs["drafted"].rate / runs["plain"].rate for runs in repeats
    )
    pairs = zip(last["plain"].texts, last["drafted"].texts, strict=True)
    result["identical_plain_drafted"] = sum(a == b for a, b in pairs)
    pairs = zip(last["plain"].texts, last["mlx-lm"].texts, strict=True)
    result["identical_plain_mlx_lm"] = sum(a == b for a, b in pairs)
    result["prompts"] = len(last["plain"].texts)
    return result


def table(title: str, result: dict[str, Any]) -> Table:
    """The summary as a Rich table."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("engine")
    for name in ("tokens/s", "x mlx-lm", "min-max", "tokens/step", "evaluations/step", "drafting"):
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
                f"{row['evaluations_per_step']:.2f}",
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
    args.planner = Planner.for_model(model) if args.planned else None
    rows = read_prompts(args.prompts or own_prompts(Path(args.model)), args.count)
    prompts = [encode_prompt(tokenizer, row) for row in rows]
    where = environment(sys.argv[1:], "python experiments/pocket.py")
    report: dict[str, Any] = {"environment": where.to_dict(), "model": args.model, "results": {}}
    for temperature in args.temps:
        result = summarise(measure(model, tokenizer, prompts, args, temperature))
        report["results"][f"{temperature:g}"] = result
        same = f"{result['identical_plain_drafted']}/{result['prompts']} texts drafted = plain"
        if temperature == 0:
            same += f", {result['identical_plain_mlx_lm']}/{result['prompts']} plain = mlx-lm"
        console.print(table(f"{model.name}, temperature {temperature:g}; {same}", result))
    console.print(circumstances(where))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except RedrafterError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
