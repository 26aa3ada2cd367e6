"""Planned against plain decoding where drafting helps, and where it can only hurt.

    python experiments/never_slower.py [--count 40] [--repeats 3] [--only NAME] [--json]
    python experiments/never_slower.py --real models/smollm2 --real-prompts question.jsonl

Each case is a run of experiments/planned.py in a process of its own, with a planner that begins
afresh: the bundles as they are, a drafter of random weights, the BLAS in mlx's own wheel (n tokens
cost n times one), weights in 4 bits (likewise on a CPU), and a real model where one is named. Shown
is planned over plain speed, over the whole run, and of first answers: each prompt's answer with a
planner that begins with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from mlx.utils import tree_map
from rich.console import Console
from rich.table import Table

from mlx_redrafter.conversion import convert
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
MEDIANS = ("over_plain", "first_answers", "tokens_per_step")
# Imported first, mlx keeps the BLAS of its wheel.
WITHOUT_OPENBLAS = (
    "import mlx.core, os, runpy, sys; del sys.argv[0]; "
    "sys.path.insert(0, os.path.dirname(sys.argv[0])); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Case:
    """What is decoded, and how."""

    name: str
    bundle: Path
    prompts: Path
    openblas: bool = True
    drafter: Path | None = None


def with_random_drafter(bundle: Path, output: Path) -> Path:
    """A copy of a bundle whose drafter knows nothing."""
    shutil.copytree(bundle, output)
    drafter = load_drafter(bundle / "drafter")
    keys = iter(mx.random.split(mx.random.key(0), 64))
    random = tree_map(
        lambda w: 0.02 * mx.random.normal(w.shape, key=next(keys)), drafter.trainable_parameters()
    )
    drafter.update(random)
    save_drafter(output / "drafter", drafter)
    return output


def cases(work: Path, args: argparse.Namespace) -> Iterator[Case]:
    """Every case; makes the bundles it needs in ``work``."""
    if args.real:
        prompts = args.real_prompts or MODELS / "pocket" / "questions.jsonl"
        yield Case(f"real: {args.real.name}", args.real, prompts, drafter=args.real_drafter)
    pocket, questions = MODELS / "pocket", MODELS / "pocket" / "questions.jsonl"
    prose = MODELS / "prose"
    yield Case("pocket", pocket, questions)
    yield Case("prose", prose, prose / "prompts.jsonl")
    yield Case("pocket, random drafter", with_random_drafter(pocket, work / "random"), questions)
    yield Case("pocket, the wheel's BLAS", pocket, questions, openblas=False)
    convert(
        hf_path=pocket, mlx_path=work / "four", quantize=True, q_bits=4, drafter=pocket / "drafter"
    )
    yield Case("pocket, 4 bits", work / "four", questions)


def run(case: Case, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Planned over plain speed, and tokens per step, for each temperature; medians of the repeats.

    Each repeat is a process, and a planner, of its own.
    """
    reports = [run_once(case, args) for _ in range(args.repeats)]
    result = {}
    for temperature in reports[0]:
        rows = [report[temperature] for report in reports]
        medians = {key: statistics.median(row[key] for row in rows) for key in MEDIANS}
        ratios = [round(row["over_plain"], 3) for row in rows]
        result[temperature] = {**rows[-1], **medians, "each": ratios}
    return result


def run_once(case: Case, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The same of one process."""
    script = str(ROOT / "experiments" / "planned.py")
    command = [sys.executable, *([] if case.openblas else ["-c", WITHOUT_OPENBLAS]), script]
    flags = ["--json", "--fresh", "--model", str(case.bundle), "--prompts", str(case.prompts)]
    flags += ["--count", str(args.count), "--max-tokens", str(args.max_tokens)]
    flags += ["--drafter", str(case.drafter)] if case.drafter else []
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    return {
        temperature: {
            **report[temperature]["planned"],
            "first_answers": report[temperature]["first answers"]["over_plain"],
        }
        for temperature in ("0", "1")
    }


def main() -> None:
    """Run every case and show the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=40, help="prompts")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, of which the median")
    parser.add_argument("--real", type=Path, help="a model of one's own, or its bundle")
    parser.add_argument("--real-drafter", type=Path, help="its drafter, where it is no bundle")
    parser.add_argument("--real-prompts", type=Path, help="questions for it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases with this in them")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    table = Table(title="planned over plain", title_justify="left")
    for heading in (
        "case",
        "temperature",
        "planned / plain",
        "first answers",
        "tokens per step",
        "is",
    ):
        table.add_column(heading)
    report = {}
    with tempfile.TemporaryDirectory() as work:
        for case in cases(Path(work), args):
            if args.only and not any(name in case.name for name in args.only):
                continue
            with console.status(case.name):
                report[case.name] = run(case, args)
            console.print(f"{case.name}: {report[case.name]}", markup=False, highlight=False)
            for temperature, row in report[case.name].items():
                table.add_row(
                    case.name, temperature, f"{row['over_plain']:.3f}",
                    f"{row['first_answers']:.2f}", f"{row['tokens_per_step']:.2f}",
                    row["state"],
                )  # fmt: skip
    console.print(table)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
