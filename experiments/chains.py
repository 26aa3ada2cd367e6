"""Measure what rolling recurrent state back costs, and write it into docs/models.md.

    python experiments/chains.py [--repeats N] [--write]

Each figure is the median time of a step: verify a chain of six rows and read its choices, behind a
step of which all six rows were accepted, or three.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from models_table import COST, PAGE, architectures, render
from rich.console import Console

from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

ROWS, KEPT, PROMPT = 6, 3, 64
SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "num_hidden_layers": 8,
        "full_attention_interval": 4,
        "mlp_only_layers": list(range(8)),
        "linear_num_value_heads": 6,
        "linear_num_key_heads": 6,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "lfm2": {
        "num_hidden_layers": 8,
        "block_dim": 384,
        "block_ff_dim": 1024,
        "layer_types": ["conv", "conv", "conv", "full_attention"] * 2,
    },
    "falcon_h1": {
        "num_hidden_layers": 6,
        "mamba_d_ssm": 768,
        "mamba_n_heads": 12,
        "mamba_d_head": 64,
        "mamba_d_state": 32,
    },
    "rwkv7": {"num_hidden_layers": 6, "head_dim": 64},
}


def chain(tokens: list[int]) -> DraftTree:
    """Rows that follow one another."""
    return DraftTree.from_parents(tokens, range(-1, len(tokens) - 1))


def prefilled(target: Target) -> PromptCache:
    """A cache behind a prompt."""
    cache = target.make_cache()
    tokens = [token % 90 for token in range(PROMPT)]
    target.prefill(mx.array(tokens), cache)
    cache.extend(tokens)
    mx.eval(cache.state)
    return cache


def step_seconds(target: Target, rows: int, kept: int) -> float:
    """One step, timed, behind one that had ``rows`` rows and kept ``kept``."""
    cache = prefilled(target)
    tokens = list(range(3, 3 + rows))
    logits, _ = target.verify(chain(tokens), cache)
    mx.eval(mx.argmax(logits, axis=-1))
    start = time.perf_counter()
    cache.commit(range(kept), tokens[:kept])
    logits, _ = target.verify(chain(tokens), cache)
    mx.eval(mx.argmax(logits, axis=-1))
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> list[float]:
    """Medians: a plain step, all accepted, rejected; rounds interleaved, as the machine drifts."""
    target = Target(architectures.build(name, **{**SIZES, **MODELS[name]}))
    cases = ((1, 1), (ROWS, ROWS), (ROWS, KEPT))
    times: list[list[float]] = [[], [], []]
    for round_ in range(repeats + 2):
        for index, (rows, kept) in enumerate(cases):
            seconds = step_seconds(target, rows, kept)
            if round_ >= 2:
                times[index].append(seconds)
    return [statistics.median(one) for one in times]


def table(repeats: int) -> str:
    """The measured figures in Markdown."""
    lines = [
        "| model | plain step, ms | all accepted, ms | rejected, ms | replay, share of a step |",
        "|---|---|---|---|---|",
    ]
    for name in MODELS:
        plain, full, cut = (1e3 * seconds for seconds in measure(name, repeats))
        share = 100 * (cut - full) / full
        lines.append(f"| {name} | {plain:.1f} | {full:.1f} | {cut:.1f} | {share:+.0f} % |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; with --write also put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--write", action="store_true", help=f"write {Path(PAGE.name)}")
    options = parser.parse_args()
    section = COST.format(mlx=version("mlx"), repeats=options.repeats, table=table(options.repeats))
    Console().print(section, markup=False, highlight=False)
    if options.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(render(section), "utf-8")


if __name__ == "__main__":
    main()
