"""What temperature adds to a plain token: its noise, and the choice with it.

    python experiments/noise_price.py [--vocab 49152 151936] [--tokens 400]
    python experiments/noise_price.py --model smollm2 --prompts FILE

By itself the choice is timed behind an output product of a small model's size, since both run in
one graph; with --model whole answers are decoded plainly, greedily and at temperature 1 by turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from planned import Run, Subject, by_turns
from rich.console import Console
from rich.table import Table

from mlx_redrafter.sampler import Sampler
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree

HIDDEN = 576  # of SmolLM2-135M
WARM_UP = 32
GREEDY, SAMPLED = 0.0, 1.0


def choice_seconds(vocab: int, temperature: float, tokens: int) -> float:
    """Mean seconds of an output product and the choice of a token behind it."""
    weight, hidden = mx.random.normal((HIDDEN, vocab)), mx.random.normal((1, HIDDEN))
    root = DraftTree.root_only(mx.array([1]))
    sampler = Sampler(SamplingConfig(temperature, seed=1), vocab)
    mx.eval(weight, hidden)
    times = []
    for place in range(WARM_UP + tokens):
        begin = time.perf_counter()
        noise = sampler.noise(place, 1)
        choices = sampler.choose(hidden @ weight, root, noise, [1], tells_noise=False)
        mx.eval(choices.tokens)
        times.append(time.perf_counter() - begin)
    return statistics.mean(times[WARM_UP:])  # blocks of noise are made now and then


def decoded(args: argparse.Namespace) -> dict[str, Run]:
    """Plain answers, both ways by turns."""
    subject = Subject.load(args.model)
    options = {"draft": False, "copy": False}
    ways = {
        "greedily": lambda: {**options, "temperature": GREEDY},
        "at temperature 1": lambda: {**options, "temperature": SAMPLED},
    }
    prompts = subject.prompts(args.prompts, args.count)
    return by_turns(subject, prompts, ways, max_tokens=args.max_tokens)


def main() -> None:
    """Show what a token takes both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 151_936])
    parser.add_argument("--tokens", type=int, default=400, help="choices timed, for each")
    parser.add_argument("--model", help="decode with this model instead")
    parser.add_argument("--prompts", type=Path, help="as of the benchmark")
    parser.add_argument("--count", type=int, default=12, help="questions, evenly from the file")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args()
    table = Table("", "greedily", "at temperature 1", "added", title="ms a token")
    if args.model:
        if args.prompts is None:
            parser.error("--model needs --prompts")
        speeds = [run.speed() for run in decoded(args).values()]
        rows = [(args.model, 1.0 / speeds[0], 1.0 / speeds[1])]
    else:
        rows = [
            (
                f"{vocab:,} tokens",
                choice_seconds(vocab, GREEDY, args.tokens),
                choice_seconds(vocab, SAMPLED, args.tokens),
            )
            for vocab in args.vocab
        ]
    for name, greedy, sampled in rows:
        table.add_row(name, *(f"{1000 * s:.2f}" for s in (greedy, sampled, sampled - greedy)))
    Console().print(table)


if __name__ == "__main__":
    main()
