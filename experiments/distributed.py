"""What several processes that share a target exchange, for each token: plain against drafted.

    python experiments/distributed.py --model models/my-bundle [--ranks 2 4] [--max-tokens 64]

Starts local processes over mlx's ring backend, which decode the same prompt plainly and drafted,
and counts mlx's collectives and the bytes that each rank puts into them. On one machine the times
say nothing of a network; the counts do.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from rich.console import Console
from rich.table import Table

PROMPT = "Write down the months of the year and what is typical of each."
COLLECTIVES = ("all_sum", "all_gather", "send", "recv")


def main() -> None:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a bundle whose heads can be divided")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        count(options.model, options.max_tokens)
        return
    table = Table("ranks", "decoding", "tokens per step", "collectives a token", "bytes a token")
    for ranks in options.ranks:
        for row in launched(options.model, ranks, options.max_tokens):
            table.add_row(str(ranks), *map(str, row))
    Console().print(table)


def launched(model: str, ranks: int, max_tokens: int) -> list[list[Any]]:
    """The rows that rank 0 prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(int(probe.getsockname()[1]), 60_000)
    launch = Path(sys.executable).parent / "mlx.launch"
    command = [
        launch, "-n", str(ranks), "--backend", "ring", "-p", str(port), "--",
        sys.executable, str(Path(__file__).resolve()), "--model", model, "--as-rank",
        "--max-tokens", str(max_tokens),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if not rows:
        sys.exit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no figures")
    return rows


def count(path: str, max_tokens: int) -> None:
    """Decode as one of the ranks, and print what was exchanged."""
    from mlx_redrafter import load, stream_generate

    totals = {"calls": 0, "bytes": 0}

    def counted(base: Any) -> Any:
        def call(x: mx.array, *args: Any, **kwargs: Any) -> Any:
            totals["calls"] += 1
            totals["bytes"] += x.nbytes
            return base(x, *args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(mx.distributed, name, counted(getattr(mx.distributed, name)))
    model, tokenizer = load(path, plan=False)
    for draft in (False, True):
        before, seen = dict(totals), None
        for response in stream_generate(
            model, tokenizer, PROMPT, max_tokens=max_tokens, draft=draft
        ):
            seen = response
            if response.generation_tokens == 1:
                before = dict(totals)  # what the prompt takes is the same either way
        if seen is None or (model.ranks and not model.ranks.leads):
            continue
        tokens = max(1, seen.generation_tokens - 1)
        made = [totals[key] - before[key] for key in ("calls", "bytes")]
        row = ["drafted" if draft else "plain", round(seen.stats.tokens_per_step, 2)]
        sys.stdout.write(json.dumps([*row, *(round(x / tokens, 1) for x in made)]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
