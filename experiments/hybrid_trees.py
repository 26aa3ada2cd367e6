"""Measure what trees cost where state recurs: the tables of docs/performance.md.

    python experiments/hybrid_trees.py [--repeats N] [--nodes 4 8 16 32] [--cpu-time]

Small random models with three recurrent layers to one attention layer. A step verifies so many rows
and reads their choices; it brings about the state of what the step before accepted, too. Rounds are
interleaved, and each figure is a median, as the machine drifts. Where the CPU does it all and other
programs share it, --cpu-time counts this process's time on its cores instead of the wall's, and
gives the least of each figure, since others can only add to it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from rich.console import Console

from mlx_redrafter.cache import recurrent
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.system.machine import processor_name
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import architectures

Clock = Callable[[], float]

PROMPT, WARM_UP = 64, 2
SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
}
# Four layers each, three that recur and one that attends; RWKV's all recur.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "mlp_only_layers": list(range(4)),
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "lfm2": {
        "num_hidden_layers": 4,
        "block_dim": 512,
        "block_ff_dim": 1536,
        "layer_types": ["conv", "conv", "conv", "full_attention"],
    },
    "granitemoehybrid": {
        "num_hidden_layers": 4,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 1536,
        "mamba_n_heads": 16,
        "mamba_d_head": 64,
        "mamba_d_state": 64,
        "layer_types": ["mamba", "mamba", "mamba", "attention"],
    },
    "rwkv7": {"num_hidden_layers": 4, "head_dim": 64},
}


@dataclass(frozen=True)
class Case:
    """A tree of some shape, and the path in it that is accepted.

    Attributes:
        name: What to call it.
        parents: Parent of each node.
        path: Nodes that are accepted, the root first.
    """

    name: str
    parents: tuple[int, ...]
    path: tuple[int, ...]

    @property
    def tree(self) -> DraftTree:
        """With tokens of no meaning."""
        return DraftTree.from_parents([3 + node for node in range(len(self.parents))], self.parents)

    @property
    def rows(self) -> int:
        """Rows that a recurrence sees: paths times levels."""
        tree = self.tree
        return tree.leaf_bound * (tree.max_depth + 1)


def cases(nodes: int) -> list[Case]:
    """A chain, a long path with three short branches, and levels of four, of as many nodes."""
    line = tuple(range(-1, nodes - 1))
    side = min(3, nodes // 2)
    spine = nodes - side
    narrow = (*range(-1, spine - 1), *range(side))
    level: list[int] = [0]
    wide = [-1]
    while len(wide) < nodes:
        above, level = level, []
        for place in (0, 0, 1, 2):
            if len(wide) < nodes:
                level.append(len(wide))
                wide.append(above[min(place, len(above) - 1)])
    return [
        Case("chain", line, line_of(line, nodes // 3)),
        Case("narrow", narrow, line_of(narrow, spine // 3)),
        Case("wide", tuple(wide), line_of(wide, first_at(wide, 1))),
    ]


def line_of(parents: Sequence[int], node: int) -> tuple[int, ...]:
    """The path to a node, the root first."""
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return tuple(path)


def first_at(parents: Sequence[int], depth: int) -> int:
    """The first node of a depth."""
    return next(node for node in range(len(parents)) if len(line_of(parents, node)) == depth + 1)


def prefilled(target: Target) -> PromptCache:
    """A cache behind a prompt."""
    cache = target.make_cache()
    for _ in target.fill([token % 90 for token in range(PROMPT)], cache):
        pass
    return cache


@dataclass
class Stepper:
    """Takes steps of one kind, each from the end of the prompt.

    Attributes:
        target: The model.
        case: The tree, verified twice.
        path: What is kept of the first.
        clock: What counts seconds.
        held_bytes: See ``cache.recurrent``.
    """

    target: Target
    case: Case
    path: Sequence[int]
    clock: Clock
    held_bytes: int = recurrent.HELD_BYTES

    def __post_init__(self) -> None:
        """Prefill."""
        self._cache = prefilled(self.target)
        self._tree = self.case.tree

    def __call__(self) -> tuple[float, float]:
        """Seconds and extra MiB of a step behind one of the same tree."""
        kept, recurrent.HELD_BYTES = recurrent.HELD_BYTES, self.held_bytes
        try:
            return self._step()
        finally:
            recurrent.HELD_BYTES = kept
            self._cache.rewind(PROMPT)

    def _step(self) -> tuple[float, float]:
        mx.eval(self._choices())
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = self.clock()
        self._cache.commit(self.path, [3] * len(self.path))
        mx.eval(self._choices())
        seconds = self.clock() - start
        return seconds, (mx.get_peak_memory() - before) / (1 << 20)

    def _choices(self) -> mx.array:
        return mx.argmax(self.target.verify(self._tree, self._cache)[0], axis=-1)


def typical_of(clock: Clock) -> Callable[[list[float]], float]:
    """What stands for several figures of a clock."""
    return min if clock is time.process_time else statistics.median


def measured(
    runs: Sequence[Stepper], repeats: int, typical: Callable[[list[float]], float]
) -> list[tuple[float, float]]:
    """Typical seconds and MiB of each run, in turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in runs]
    for round_ in range(repeats + WARM_UP):
        for place, run in enumerate(runs):
            result = run()
            if round_ >= WARM_UP:
                taken[place].append(result)
    return [
        (typical([one for one, _ in each]), statistics.median(one for _, one in each))
        for each in taken
    ]


def tree_table(sizes: Sequence[int], repeats: int, clock: Clock) -> str:
    """Steps over chains and trees, in Markdown."""
    lines = [
        "| model | nodes | chain, ms | narrow, ms | wide, ms | rows of a recurrence | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config in MODELS.items():
        target = Target(architectures.build(name, **{**SIZES, **config}))
        for nodes in sizes:
            shapes = cases(nodes)
            runs = [Stepper(target, case, case.path, clock) for case in shapes]
            steps = measured(runs, repeats, typical_of(clock))
            chain = steps[0][0]
            times = [f"{1e3 * chain:.1f}"]
            times += [f"{1e3 * t:.1f} ({t / chain - 1:+.0%})" for t, _ in steps[1:]]
            rows = " / ".join(str(case.rows) for case in shapes)
            memory = " / ".join(f"{size:.0f}" for _, size in steps)
            lines.append(f"| {name} | {nodes} | {' | '.join(times)} | {rows} | {memory} |")
    return "\n".join(lines)


def state_table(repeats: int, clock: Clock, nodes: int = 16) -> str:
    """What bringing about the accepted path's state costs, in Markdown."""
    lines = [
        "| model | chain kept whole, ms | chain cut | path held | path replayed |",
        "|---|---|---|---|---|",
    ]
    for name, config in MODELS.items():
        target = Target(architectures.build(name, **{**SIZES, **config}))
        chain, _, wide = cases(nodes)
        deepest = max(range(nodes), key=lambda node: len(line_of(wide.parents, node)))
        longest = line_of(wide.parents, deepest)
        runs = [
            Stepper(target, chain, range(nodes), clock),
            Stepper(target, chain, range(len(longest)), clock),
            Stepper(target, wide, longest, clock, 1 << 40),
            Stepper(target, wide, longest, clock, 0),
        ]
        times = [seconds for seconds, _ in measured(runs, repeats, typical_of(clock))]
        cells = [f"{1e3 * times[0]:.1f}", *(f"{1e3 * t:.1f}" for t in times[1:])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--cpu-time", action="store_true", help="count time on the cores")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    out = Console().out
    out(f"{processor_name()}, {os.cpu_count()} cores, mlx {version('mlx')}, float32")
    kind = "least CPU time" if options.cpu_time else "medians"
    out(f"{kind} of {options.repeats}\n")
    out(tree_table(options.nodes, options.repeats, clock) + "\n")
    out(state_table(options.repeats, clock))


if __name__ == "__main__":
    main()
