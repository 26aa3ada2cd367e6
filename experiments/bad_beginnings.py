"""Ordinary questions after a beginning that tells the planner nothing good, or too much.

    python experiments/bad_beginnings.py [--count 20] [--only "a repeated word"] [--json]

Each beginning is decoded with a planner of its own: unknown names, answers of one word, temperature
1.5, a loaded machine, a text in another language, a word that is repeated for 256 tokens; then the
same ordinary questions. They take turns with a planner that had no such beginning. Shown is the
speed with the beginning over the speed without.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interleaved import run_script
from planned import Run, Subject, asked, by_turns, parser, plain, planned
from rich.console import Console
from rich.table import Table

from mlx_redrafter import Planner

UNKNOWN = (
    "What does frobnicate.wibble do?",
    "What does quxify.snarf do?",
    "Explain zorblatt.munge to me.",
)
ONE_WORD = ("Say yes.", "Answer with one word: is two more than one?", "Say no.", "Say ok.")
FOREIGN = ("Was ist eine Funktion, und wozu braucht man sie? Bitte auf Deutsch.",)
REPEATED = ("Write the word apple 100 times.", "Write the word banana 100 times.")


@contextmanager
def loaded(processes: int = 2) -> Iterator[None]:
    """Other programs that use the processor, as long as the block runs."""
    spawn = multiprocessing.get_context("spawn")  # a fork after text was computed may hang
    workers = [spawn.Process(target=_work, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work() -> None:
    while True:
        sum(range(10_000))


def begin(subject: Subject, name: str, planner: Planner, options: dict[str, Any]) -> None:
    """Decode a beginning."""

    def ask(texts: tuple[str, ...], **more: Any) -> None:
        for place, text in enumerate(texts):
            prompt = subject.prompt(text)
            subject.answer(Run(), prompt, planner=planner, seed=place, **{**options, **more})

    if name == "unknown names":
        ask(UNKNOWN)
    elif name == "one-word answers":
        ask(ONE_WORD * 2, max_tokens=3)
    elif name == "temperature 1.5":
        ask(UNKNOWN, temperature=1.5)
    elif name == "a loaded machine":
        with loaded():
            ask(UNKNOWN, temperature=1.5)
    elif name == "another language":
        ask(FOREIGN)
    elif name == "a repeated word":
        ask(REPEATED, max_tokens=256)


NAMES = (
    "unknown names", "one-word answers", "temperature 1.5", "a loaded machine", "another language",
    "a repeated word",
)  # fmt: skip


def measure(subject: Subject, args: argparse.Namespace, temperature: float) -> dict[str, float]:
    """Speed after each beginning over the speed without one."""
    options = {"max_tokens": args.max_tokens, "temperature": temperature}
    names = args.only or NAMES
    planners = {"without": subject.planner()} | {name: subject.planner() for name in names}
    for name in names:
        begin(subject, name, planners[name], options)
    prompts = asked(subject, args)
    subject.answer(Run(), prompts[0], draft=False, max_tokens=12)
    ways = {"plain": plain} | {name: planned(planner) for name, planner in planners.items()}
    runs = by_turns(subject, prompts, ways, **options)
    found = {name: runs[name].speed() / runs["without"].speed() for name in names}
    return {"without, x plain": runs["without"].speed() / runs["plain"].speed(), **found}


def main() -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--only", nargs="+", choices=NAMES, help="these beginnings")
    args = flags.parse_args()
    console = Console(stderr=args.json)
    subject = Subject.load(args.model, args.drafter, recalibrate=args.recalibrate)
    report = {}
    grid = Table(title="speed after a beginning over the speed without", title_justify="left")
    grid.add_column("beginning")
    for temperature in args.temps:
        report[f"{temperature:g}"] = measure(subject, args, temperature)
        grid.add_column(f"temperature {temperature:g}", justify="right")
    for name in next(iter(report.values())):
        grid.add_row(name, *(f"{column[name]:.2f}" for column in report.values()))
    console.print(grid)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
