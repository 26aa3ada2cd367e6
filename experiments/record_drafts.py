"""Record how a drafter's drafts go, for one that was trained before that was recorded.

    python experiments/record_drafts.py --model MODEL --prompts FILE --output MODEL/drafter

Writes recorded_drafts.json beside the drafter's weights, by which a planner begins. The training
command records drafts at its end. Prompts are best ones that the drafter was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from interleaved import read_prompts, run_script
from rich.progress import Progress

from mlx_redrafter import load
from mlx_redrafter.text.drafter_files import save_recorded
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.training.recording import record_drafts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the target")
    parser.add_argument("--drafter", help="directory of its drafter (default: the model's own)")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON Lines of prompts")
    parser.add_argument("--count", type=int, default=8, help="prompts that are answered")
    parser.add_argument("--output", type=Path, required=True, help="the drafter's directory")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model, arguments.drafter, plan=False)
    if model.head is None:
        parser.error(f"{arguments.model} has no drafter: pass --drafter DIR.")
    prompts = [
        encode_prompt(tokenizer, prompt if tokenizer.has_chat_template else prompt[-1]["content"])
        for prompt in read_prompts(arguments.prompts, arguments.count)
    ]
    with Progress() as bar:
        task = bar.add_task("recording drafts")
        recorded = record_drafts(
            model.target,
            model.head,
            prompts,
            eos_token_ids=sorted(tokenizer.eos_token_ids),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if recorded is None:
        parser.error("Nothing was drafted: pass prompts with longer answers.")
    save_recorded(arguments.output, recorded)
    print(f"{len(recorded.drafts)} drafts in {arguments.output}")


if __name__ == "__main__":
    run_script(main)
