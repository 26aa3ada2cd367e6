"""What several processes that share a target exchange, for each token: plain against drafted.

    python experiments/distributed.py --model models/pocket --pad-heads 8 [--ranks 2 4]

Starts local processes over mlx's ring backend, which decode the same prompt plainly and drafted,
and counts mlx's collectives and the bytes that each rank puts into them, those by which ranks agree
on seeds and times included. Each text is compared with that of one process alone: where sums of
parts round otherwise, the gap between the two best scores there is shown. On one machine the times
say nothing of a network; the counts do.

``--pad-heads`` gives a Llama further attention heads of zeros, which change nothing but what its
heads can be divided by.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from interleaved import run_script
from rich.console import Console
from rich.table import Table

PROMPT = "Write down the months of the year and what is typical of each."
COLLECTIVES = ("all_sum", "all_gather", "send", "recv")


def main() -> None:
    """Start the processes, or be one of them."""
    options = parsed()
    if options.as_rank:
        count(options)
        return
    table = Table(
        "ranks", "decoding", "tokens per step", "collectives a token", "bytes a token", "text"
    )
    with padded(options.model, options.pad_heads) as model:
        alone = {row["decoding"]: row for row in launched(options, model, 1)}
        for ranks in options.ranks:
            for row in launched(options, model, ranks):
                figures = (row[name] for name in ("tokens_per_step", "collectives", "bytes"))
                said = compared(model, alone[row["decoding"]], row)
                table.add_row(str(ranks), row["decoding"], *(f"{x:,}" for x in figures), said)
    Console().print(table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a bundle whose heads can be divided")
    parser.add_argument("--drafter", help="another drafter than the bundle's own")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--pipeline", action="store_true", help="whole layers for each process")
    parser.add_argument("--pad-heads", type=int, help="attention heads to fill up to")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def padded(model: str, heads: int | None) -> Iterator[str]:
    """The model, or a copy of it with further heads of zeros."""
    if heads is None:
        yield model
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / Path(model).name
        shutil.copytree(model, copy)
        pad(copy, heads)
        yield str(copy)


def pad(directory: Path, heads: int) -> None:
    """Fill a Llama with as many key and value heads as heads up with heads of zeros."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    had, size = config["num_attention_heads"], config["head_dim"]
    if config["num_key_value_heads"] != had or heads < had:
        sys.exit(
            f"Only a model with as many key and value heads as heads is padded, up from {had}."
        )
    config["num_attention_heads"] = config["num_key_value_heads"] = heads
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    more = (heads - had) * size
    for file in directory.glob("model*.safetensors"):
        weights = dict(mx.load(str(file)))
        for name, value in weights.items():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                weights[name] = mx.pad(value, [(0, more), (0, 0)])
            elif name.endswith("o_proj.weight"):
                weights[name] = mx.pad(value, [(0, 0), (0, more)])
        mx.eval(weights)
        mx.save_safetensors(str(file), weights, {"format": "mlx"})


def whereabouts(name: str) -> str:
    """A directory by its whole path, as processes may start elsewhere; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def launched(options: argparse.Namespace, model: str, ranks: int) -> list[dict[str, Any]]:
    """The rows that rank 0 prints."""
    own = [sys.executable, str(Path(__file__).resolve()), "--model", whereabouts(model)]
    own += ["--as-rank", "--max-tokens", str(options.max_tokens), "--prompt", options.prompt]
    own += ["--pipeline"] * options.pipeline
    own += ["--drafter", whereabouts(options.drafter)] if options.drafter else []
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = min(int(probe.getsockname()[1]), 60_000)
        launch = Path(sys.executable).parent / "mlx.launch"
        own = [str(launch), "-n", str(ranks), "--backend", "ring", "-p", str(port), "--", *own]
    done = subprocess.run(
        own, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(rows) < 2:
        sys.exit(done.stderr.strip() or "no figures")
    return rows


def compared(model: str, expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Whether a text is that of one process alone, and by what gap it parts where not."""
    from mlx_redrafter import load
    from mlx_redrafter.benchmark.agreement import decision, first_difference
    from mlx_redrafter.sampling import SamplingConfig

    place = first_difference(expected["tokens"], found["tokens"])
    if place is None:
        return "the same"
    target, _ = load(model, drafter=False, plan=False)
    context = [*expected["prompt"], *expected["tokens"][:place]]
    gap, _, best = decision(target, context, SamplingConfig(), None, None)
    return f"parts at token {place}, gap {gap:.1e} of {best:.1f}"


def count(options: argparse.Namespace) -> None:
    """Decode as one of the ranks, or alone, and print what was exchanged."""
    from mlx_redrafter import load, stream_generate
    from mlx_redrafter.text.prompts import encode_prompt

    totals = {"calls": 0, "bytes": 0}

    def counted(base: Any) -> Any:
        def call(x: mx.array, *args: Any, **kwargs: Any) -> Any:
            totals["calls"] += 1
            totals["bytes"] += x.nbytes
            return base(x, *args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(mx.distributed, name, counted(getattr(mx.distributed, name)))
    model, tokenizer = load(options.model, options.drafter, plan=False, pipeline=options.pipeline)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": options.prompt}])
    for draft in (False, True):
        before, seen, tokens = dict(totals), None, []
        for response in stream_generate(
            model, tokenizer, prompt, max_tokens=options.max_tokens, draft=draft
        ):
            seen = response
            tokens.append(response.token)
            if len(tokens) == 1:
                before = dict(totals)  # what the prompt takes is the same either way
        if seen is None or (model.ranks and not model.ranks.leads):
            continue
        calls, size = (
            round((totals[key] - before[key]) / max(1, len(tokens) - 1), 1)
            for key in ("calls", "bytes")
        )
        row = {
            "decoding": "drafted" if draft else "plain",
            "tokens_per_step": round(seen.stats.tokens_per_step, 2),
            "collectives": calls, "bytes": size, "tokens": tokens, "prompt": prompt,
        }  # fmt: skip
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run_script(main)
