"""What a step costs beyond the target's own forward.

    python experiments/loop.py [--model PATH] [--beam-width 4 --beam-length 5] [--json]

For plain and for drafted steps: primitives in the step's graph (each is a launch on a GPU), time to
build the graph and to commit (the host's), time of drafting and of the whole evaluation (the
device's), and how much memory plain and drafted decoding take at their peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from mlx.utils import tree_flatten
from rich.console import Console
from rich.table import Table

from mlx_redrafter import SpeculativeModel, load
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput, DraftSource
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.sampler import Sampler
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree
from mlx_redrafter.ui.cli.benchmark_view import circumstances

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 64
TOKENS = 96


@dataclass
class Step:
    """Medians over the steps measured, seconds."""

    nodes: int
    primitives: int
    host: float
    draft: float
    evaluate: float
    commit: float

    @property
    def overhead(self) -> float:
        """Share of a step that is the host's or the drafter's."""
        whole = self.host + self.evaluate + self.commit
        return (self.host + self.draft + self.commit) / whole


def primitives(arrays: list[mx.array]) -> int:
    """Operations in a lazy graph, without the nodes that only name its inputs."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        return sum("shape=rectangle" in line for line in file.read().splitlines())


def filled(model: SpeculativeModel) -> PromptCache:
    """A cache behind CONTEXT tokens."""
    cache = model.make_cache()
    tokens = [7 * token % model.target.vocab_size for token in range(CONTEXT)]
    model.target.prefill(mx.array(tokens), cache)
    mx.eval(cache.state)
    cache.extend(tokens)
    return cache


def measure(
    model: SpeculativeModel, shape: BeamShape | None, temperature: float, repeats: int
) -> Step:
    """One kind of step: plain where ``shape`` is None."""
    sampling = SamplingConfig(temperature=temperature)
    sampler = Sampler(sampling, model.target.vocab_size)
    source = model.source(shape, sampling) if shape else None
    cache, times, count = filled(model), [], 0
    hidden = mx.random.normal((model.target.hidden_size,), key=mx.random.key(1))
    for repeat in range(repeats + 3):
        root = mx.array([repeat % model.target.vocab_size], dtype=mx.int32)
        mx.eval(root, hidden)
        began = time.perf_counter()
        noise = sampler.noise(len(cache) + 1, 1 + (source.max_depth if source else 0))
        tree = _tree(source, DraftInput(root, hidden.astype(model.target.dtype), noise))
        logits, states = model.target.verify(tree, cache)
        choices = sampler.choose(logits, tree, noise, []).tokens
        built = time.perf_counter()
        if not count:
            count = primitives([tree.tokens, tree.parents, tree.log_probs, choices, states])
            built = began = time.perf_counter()
        mx.eval(tree.tokens, tree.parents, tree.log_probs, choices, states)
        done = time.perf_counter()
        cache.commit([0], [repeat % model.target.vocab_size])
        times.append((built - began, done - built, time.perf_counter() - done))
    host, evaluate, commit = (statistics.median(column[3:]) for column in zip(*times, strict=True))
    draft = source.seconds if source else 0.0
    return Step(len(tree), count, host, draft, evaluate, commit)


def _tree(source: DraftSource | None, state: DraftInput) -> DraftTree:
    return source(state) if source else DraftTree.root_only(state.root)


def peak(model: SpeculativeModel, shape: BeamShape | None) -> int:
    """Most bytes held at once while TOKENS tokens are decoded behind CONTEXT, weights included."""
    mx.clear_cache()
    mx.reset_peak_memory()
    prompt = [7 * token % model.target.vocab_size for token in range(CONTEXT)]
    config = DecodingConfig(TOKENS, draft=shape is not None, beam=shape or BeamShape())
    list(decode(model, prompt, config))
    return mx.get_peak_memory()


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models" / "pocket"))
    parser.add_argument("--beam-width", type=int, default=4)
    parser.add_argument("--beam-length", type=int, default=5)
    parser.add_argument("--node-budget", type=int)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    where = environment(sys.argv[1:], "python experiments/loop.py")
    model, _ = load(args.model, plan=False)
    shape = BeamShape(args.beam_width, args.beam_length, args.node_budget)
    kinds: dict[str, tuple[BeamShape | None, float]] = {
        "plain, greedy": (None, 0.0),
        "drafted, greedy": (shape, 0.0),
        "plain, temperature 1": (None, 1.0),
        "drafted, temperature 1": (shape, 1.0),
    }
    steps = {name: measure(model, *kind, args.repeats) for name, kind in kinds.items()}
    drafter: Any = model.drafter
    memory = {
        "plain_bytes": peak(model, None),
        "drafted_bytes": peak(model, shape),
        "drafter_bytes": sum(value.nbytes for _, value in tree_flatten(drafter.parameters())),
    }
    if args.json:
        shown = {name: {**asdict(step), "overhead": step.overhead} for name, step in steps.items()}
        print(json.dumps({"environment": where.to_dict(), "steps": shown, "memory": memory}))
        return
    show(steps, memory)
    Console().print(circumstances(where))


def show(steps: dict[str, Step], memory: dict[str, int]) -> None:
    """A table of the steps, a line on memory."""
    table = Table(title="A step, medians in ms")
    for heading in ("step", "nodes", "primitives", "host", "draft", "evaluation", "commit"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    table.add_column("host + draft", justify="right")
    for name, step in steps.items():
        figures = (step.host, step.draft, step.evaluate, step.commit)
        table.add_row(
            name, str(step.nodes), str(step.primitives), *(f"{1e3 * x:.2f}" for x in figures),
            f"{step.overhead:.0%}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    plain, drafted, drafter = memory.values()
    console.print(
        f"Peak memory: plain {plain / 1e6:.1f} MB with the drafter's weights loaded, drafted "
        f"{drafted / 1e6:.1f} MB ({drafted / plain:.3f} of it); the drafter {drafter / 1e6:.1f} MB."
    )


if __name__ == "__main__":
    main()
