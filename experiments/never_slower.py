"""Planned against plain decoding where drafting helps, and where it can only hurt.

    python experiments/never_slower.py [--repeats 3] [--count 16] [--only NAME] [--json]

Each case is a run of experiments/pocket.py --planned in a process of its own: the bundles as they
are, a drafter of random weights, the BLAS in mlx's own wheel (n tokens cost n times one), and
weights in 4 bits (likewise on a CPU). Shown is planned over plain speed, the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from mlx.utils import tree_map
from rich.console import Console
from rich.table import Table

from mlx_redrafter.conversion import convert
from mlx_redrafter.text.loading import load_drafter, save_drafter

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
# Imported first, mlx keeps the BLAS of its wheel.
WITHOUT_OPENBLAS = (
    "import mlx.core, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Case:
    """What is decoded, and how."""

    name: str
    bundle: Path
    prompts: Path
    openblas: bool = True


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


def cases(work: Path) -> Iterator[Case]:
    """Every case; makes the bundles it needs in ``work``."""
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


def run(case: Case, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Planned over plain speed, and tokens per step, for each temperature."""
    script = str(ROOT / "experiments" / "pocket.py")
    command = [sys.executable, *([] if case.openblas else ["-c", WITHOUT_OPENBLAS]), script]
    flags = ["--planned", "--json", "--model", str(case.bundle), "--prompts", str(case.prompts)]
    flags += ["--count", str(args.count), "--repeats", str(args.repeats), "--max-tokens", "96"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    return {
        temperature: {
            "ratio": result["drafted"]["ratio_to_plain"],
            "tokens_per_step": result["drafted"]["stats"]["tokens_per_step"],
            "identical": result["identical_plain_drafted"] / result["prompts"],
        }
        for temperature, result in results.items()
    }


def main() -> None:
    """Run every case and show the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", type=int, default=16, help="prompts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases with this in them")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    table = Table(title="planned over plain", title_justify="left")
    for heading in ("case", "temperature", "planned / plain", "tokens per step", "texts equal"):
        table.add_column(heading)
    report = {}
    with tempfile.TemporaryDirectory() as work:
        for case in cases(Path(work)):
            if args.only and not any(name in case.name for name in args.only):
                continue
            with console.status(case.name):
                report[case.name] = run(case, args)
            console.print(f"{case.name}: {report[case.name]}", markup=False, highlight=False)
            for temperature, row in report[case.name].items():
                table.add_row(
                    case.name, temperature, f"{row['ratio']:.2f}", f"{row['tokens_per_step']:.2f}",
                    f"{row['identical']:.0%}",
                )  # fmt: skip
    console.print(table)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
