"""What each part of the training is worth: the table of docs/training.md.

    python experiments/training_ablation.py                    both targets, the whole budget
    python experiments/training_ablation.py --quick            both, a small budget
    python experiments/training_ablation.py --steps 1000 --records 1500 --output build/ablation-1000
    python experiments/training_ablation.py --target prose --only base --only independent

It needs the corpora that ``python -m models.recipe --stage corpus`` leaves in
models/recipe/build. Everything it makes is under --output; what is finished there is not made
again, so an interrupted run goes on where it was, and rows are added with --only one by one. Every
row is one training run that differs from the base row in one thing, decoded on the target's fixed
held-out prompts. --steps and --records change what is trained, which is refused where rows of
another budget are; --prompts and --max-tokens change what is measured, which is then done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_redrafter import BeamShape, RedrafterError, load
from mlx_redrafter.benchmark.prompts import read_conversations
from mlx_redrafter.system.disk import changes
from mlx_redrafter.system.files import write_json
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.training import (
    Progress,
    TrainingCallback,
    answer_file,
    measure_decoding,
    read_jsonl,
    train_drafter,
    write_jsonl,
)
from mlx_redrafter.training.hashes import target_hash
from mlx_redrafter.training.target_texts import AnswerSettings
from mlx_redrafter.ui.parsing import count

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "models" / "recipe" / "build"
HELD_OUT = 64  # records that training evaluates on, to choose the best step


@dataclass(frozen=True)
class Subject:
    """A target, its corpus, and its held-out prompts."""

    model: Path
    train: Path
    valid: Path
    prompts: Path
    draft_vocab_size: int
    answer_temperatures: tuple[float, ...]  # own answers are made at each, in turn
    answer_tokens: int


SUBJECTS = {
    "pocket": Subject(
        ROOT / "models" / "pocket",
        BUILD / "pocket" / "train.jsonl",
        BUILD / "pocket" / "valid.jsonl",
        ROOT / "models" / "pocket" / "questions.jsonl",
        draft_vocab_size=2048,
        answer_temperatures=(0.0,),
        answer_tokens=160,
    ),
    "prose": Subject(
        ROOT / "models" / "prose",
        BUILD / "prose" / "train.jsonl",
        BUILD / "prose" / "valid.jsonl",
        ROOT / "models" / "prose" / "prompts.jsonl",
        draft_vocab_size=2048,
        answer_temperatures=(0.0, 1.0),
        answer_tokens=96,
    ),
}


@dataclass(frozen=True)
class Row:
    """One training run: what it is called and in what it differs from the base."""

    name: str
    title: str
    data: str = "own"
    reduced: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("hard", "hard labels on the corpus", data="corpus", settings={"loss": "hard"}),
    Row("corpus", "distilled on the corpus", data="corpus"),
    Row("base", "distilled on the target's own answers (base)"),
    Row("unroll-1", "base, unroll 1", settings={"unroll": 1}),
    Row("unroll-3", "base, unroll 3", settings={"unroll": 3}),
    Row("sum", "base, rnn false", settings={"rnn": False}),
    Row("independent", "base, independent heads", settings={"independent": True}),
    Row("full", "base, full draft vocabulary", reduced=False),
    Row("lookback", "base, lookback 4", settings={"lookback": 4}),
)


@dataclass(frozen=True)
class Budget:
    """How long everything runs: what is trained, and then what is measured."""

    records: int = 4000
    steps: int = 3000
    positions: int = 256
    learning_rate: float = 6e-3
    eval_prompts: int = 32
    prompts: int = 64
    max_tokens: int = 96

    @property
    def trained(self) -> dict[str, Any]:
        """What the drafters of a table have in common."""
        names = ("records", "steps", "positions", "learning_rate", "eval_prompts")
        return {name: getattr(self, name) for name in names}

    @property
    def measured(self) -> dict[str, Any]:
        """What is decoded with each of them."""
        return {"prompts": self.prompts, "max_tokens": self.max_tokens}


QUICK = Budget(records=400, steps=300, eval_prompts=16, prompts=16, max_tokens=48)


BUDGET_FLAGS = {
    "records": "records of the corpus to train on",
    "steps": "optimiser steps of each row",
    "prompts": "held-out prompts decoded",
    "max_tokens": "longest answer decoded",
}


class Lines(TrainingCallback):
    """Prints the evaluations of a run."""

    def __init__(self, console: Console, name: str):
        self._console, self._name = console, name

    def report(self, progress: Progress) -> None:
        if progress.decoded is not None:
            self._console.print(
                f"  {self._name} step {progress.step}: loss {progress.loss:.3f}, "
                f"{progress.decoded.tokens_per_step:.2f} tokens per step",
                highlight=False,
            )


def prepare(subject: Subject, budget: Budget, work: Path) -> None:
    """Write the two data sets, ``corpus`` and ``own``: train.jsonl and valid.jsonl of each."""
    for path in (subject.train, subject.valid):
        if not path.is_file():
            raise RedrafterError(
                f"There is no {path.relative_to(ROOT)}: make it with python -m models.recipe "
                "--stage corpus."
            )
    parts = {
        "train": _evenly(read_jsonl(subject.train), budget.records),
        "valid": _evenly(read_jsonl(subject.valid), HELD_OUT),
    }
    for name, records in parts.items():
        write_jsonl(work / "corpus" / f"{name}.jsonl", records)
    model, tokenizer = load(subject.model, drafter=False)
    sha256 = target_hash(model.target)
    for name, records in parts.items():
        answers: list[Any] = [None] * len(records)
        kinds = len(subject.answer_temperatures)
        for i, temperature in enumerate(subject.answer_temperatures):
            answers[i::kinds] = answer_file(
                work / "answers" / f"{name}-{i}.jsonl",
                model.target.model,
                tokenizer,
                records[i::kinds],
                AnswerSettings(max_tokens=subject.answer_tokens, temperature=temperature),
                target_sha256=sha256,
            )
        write_jsonl(work / "own" / f"{name}.jsonl", answers)


def _evenly(records: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the records, from all over."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def train_row(subject: Subject, row: Row, budget: Budget, work: Path, console: Console) -> Path:
    """Train a row's drafter, where it is not there yet; returns its directory."""
    out = work / row.name
    if (out / "training.json").is_file():
        return out
    unroll = row.settings.get("unroll", 5)
    shape = {} if row.settings.get("independent") else {"exit_dim": hidden_size(subject)}
    settings: dict[str, Any] = {
        "num_draft_layers": 1,
        "draft_vocab_size": subject.draft_vocab_size if row.reduced else None,
        "steps": budget.steps,
        "positions_per_step": budget.positions,
        "learning_rate": budget.learning_rate,
        "max_seq_length": 512,
        "held_out": HELD_OUT,
        "eval_every": max(1, budget.steps // 5),
        "eval_prompts": budget.eval_prompts,
        "unroll": unroll,
        **shape,
        **row.settings,
    }
    train_drafter(
        subject.model,
        work / row.data,
        out,
        callback=Lines(console, row.name),
        resume=True,
        cache_features=work / "features" / f"{row.data}-{'reduced' if row.reduced else 'full'}",
        **settings,
    )
    return out


def hidden_size(subject: Subject) -> int:
    """Of the target."""
    return int(json.loads((subject.model / "config.json").read_text())["hidden_size"])


def known_figures(out: Path, budget: Budget) -> dict[str, Any] | None:
    """What was measured of a row's drafter already, if it is what is asked for."""
    found = out / "ablation.json"
    known: dict[str, Any] = json.loads(found.read_text()) if found.is_file() else {}
    return known if known.get("asked") == budget.measured else None


def measure_row(subject: Subject, out: Path, budget: Budget) -> dict[str, Any]:
    """Decode the held-out prompts with a row's drafter, greedily and at temperature 1."""
    known = known_figures(out, budget)
    if known is not None:
        return known
    model, tokenizer = load(subject.model, drafter=out)
    assert model.head is not None
    prompts = [
        encode_prompt(tokenizer, prompt) for prompt in read_prompts(subject.prompts, budget.prompts)
    ]
    figures: dict[str, Any] = {"asked": budget.measured}
    for name, beam, temperature in (
        ("greedy", BeamShape(4, 5), 0.0),
        ("sampled", BeamShape(4, 5), 1.0),
        ("chain", BeamShape(1, 5), 0.0),
    ):
        figures[name] = measure_decoding(
            model.target,
            model.drafter,
            prompts,
            beam=beam,
            max_tokens=budget.max_tokens,
            temperature=temperature,
            eos_token_ids=sorted(tokenizer.eos_token_ids),
        ).to_dict()
    card = json.loads((out / "training.json").read_text())
    figures["sizes"] = card["figures"]["sizes"]
    write_json(out / "ablation.json", figures)
    return figures


def read_prompts(path: Path, count: int) -> list[Any]:
    """Questions as chats, prompts as text, from all over the file."""
    openings = [one.opening for one in _evenly(read_conversations(path), count)]
    return [one if isinstance(one, str) else list(one) for one in openings]


def table(name: str, rows: Sequence[tuple[Row, dict[str, Any]]]) -> str:
    """The Markdown table of one target."""
    lines = [
        f"| {name} | greedy | temperature 1 | of greedy's | one chain | accepted by depth (greedy) "
        "| parameters | bytes a drafted token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, figures in rows:
        greedy, sampled = figures["greedy"], figures["sampled"]
        depths = " ".join(f"{share:.2f}" for share in greedy["acceptance_by_depth"])
        sizes = figures["sizes"]
        lines.append(
            f"| {row.title} | {greedy['tokens_per_step']:.2f} | {sampled['tokens_per_step']:.2f} "
            f"| {sampled['tokens_per_step'] / greedy['tokens_per_step']:.0%} "
            f"| {figures['chain']['tokens_per_step']:.2f} | {depths} "
            f"| {sizes['drafter_parameters'] / 1e6:.2f} M "
            f"| {sizes['bytes_per_drafted_token'] / 1e6:.2f} MB ({sizes['share']:.0%} of the "
            "target's) |"
        )
    return "\n".join(lines)


def run(name: str, rows: Sequence[Row], budget: Budget, output: Path, console: Console) -> str:
    """The table of one target: ``rows``, and the others that were trained and measured before."""
    subject, work = SUBJECTS[name], output / name
    if not (work / "budget.json").is_file():
        write_json(work / "budget.json", budget.trained)
    elif changed := changes(work / "budget.json", budget.trained):
        raise RedrafterError(
            f"{work} was made with another budget ({', '.join(changed)}): pass another --output."
        )
    console.print(f"{name}: data and the target's own answers", highlight=False)
    prepare(subject, budget, work)
    for row in rows:
        console.print(f"{name}: {row.title}", highlight=False)
        measure_row(subject, train_row(subject, row, budget, work, console), budget)
    known = [(row, known_figures(work / row.name, budget)) for row in ROWS]
    found = [(row, figures) for row, figures in known if figures is not None]
    write_json(work / "results.json", {row.name: figures for row, figures in found})
    return table(name, found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=SUBJECTS, action="append", help="default: all")
    parser.add_argument("--only", choices=[r.name for r in ROWS], action="append", help="rows")
    parser.add_argument("--quick", action="store_true", help="a small budget to begin with")
    for name, what in BUDGET_FLAGS.items():
        text = f"{what}; {getattr(Budget(), name)}, or {getattr(QUICK, name)} with --quick"
        parser.add_argument(f"--{name.replace('_', '-')}", type=count(1), metavar="N", help=text)
    parser.add_argument("--output", type=Path, help="default: build/ablation[-quick]")
    args = parser.parse_args(arguments)
    base = QUICK if args.quick else Budget()
    changed = {k: getattr(args, k) for k in BUDGET_FLAGS}
    budget = Budget(**{**vars(base), **{k: v for k, v in changed.items() if v is not None}})
    output = args.output or ROOT / "build" / ("ablation-quick" if args.quick else "ablation")
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    console = Console()
    try:
        for name in args.target or SUBJECTS:
            text = run(name, rows, budget, output, console)
            (output / name / "table.md").write_text(text + "\n", "utf-8")
            console.print(text, highlight=False, soft_wrap=True, markup=False)
    except RedrafterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
