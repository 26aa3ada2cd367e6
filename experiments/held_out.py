"""What draft heads of one model are worth on held-out texts: along them, and in decoding.

    python experiments/held_out.py --model smollm2 --data chats/ --drafter HEAD OTHER

The data's valid split is read. Along the texts the likeliest token of each draft step is compared
with the target's likeliest; decoding answers the first prompts with a chain of five and with 15
nodes from four beams of five. Only heads with a memory are taken.
"""

from __future__ import annotations

import argparse

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from interleaved import run_script

from mlx_redrafter import load
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.training import DistillationConfig, evaluate, tokenize
from mlx_redrafter.training.evaluation import measure_decoding, prompts_of
from mlx_redrafter.training.sources import read_data
from mlx_redrafter.training.text_batches import TextBatches

SHAPES = {"chain of 5": BeamShape(1, 5), "15 nodes": BeamShape(4, 5, node_budget=15)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the target")
    parser.add_argument("--data", required=True, help="directory with train.jsonl and valid.jsonl")
    parser.add_argument("--drafter", required=True, nargs="+", help="directories of its heads")
    parser.add_argument("--records", type=int, default=64, help="held-out records measured along")
    parser.add_argument("--prompts", type=int, default=16, help="of which so many are answered")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    arguments = parser.parse_args()
    _, held = read_data(arguments.data, held_out=10**6)
    every = max(1, len(held) // arguments.records)
    config = DistillationConfig(unroll=5, positions_per_step=1024)
    for path in arguments.drafter:
        model, tokenizer = load(arguments.model, drafter=path)
        rows = tokenize(held[::every][: arguments.records], tokenizer, 1024)
        drafter = model.drafter
        assert drafter is not None
        drafter.set_dtype(mx.float32)
        along = evaluate(model.target, drafter, TextBatches(model.target, drafter, rows, config))
        shares = " ".join(f"{one:.3f}" for one in along.top1)
        print(f"{path}: {along.chain:.3f} a step along {len(rows)} texts, right by depth {shares}")
        for temperature in arguments.temperature:
            for name, beam in SHAPES.items():
                made = measure_decoding(
                    model.target,
                    drafter,
                    prompts_of(rows, arguments.prompts),
                    beam=beam,
                    max_tokens=arguments.max_tokens,
                    temperature=temperature,
                    eos_token_ids=sorted(tokenizer.eos_token_ids),
                )
                print(
                    f"  {name}, temperature {temperature:g}: {made.tokens_per_step:.2f} tokens a "
                    f"step ({made.tokens} tokens of {made.prompts} prompts)",
                    flush=True,
                )


if __name__ == "__main__":
    run_script(main)
