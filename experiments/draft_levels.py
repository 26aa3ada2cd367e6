"""What a level of a draft costs: draft heads of one model in turn, against a plain token.

    python experiments/draft_levels.py --model smollm2 --drafter models/smollm2/drafter OTHER

Each round times every draft and a plain token once, one after the other; printed are medians and
their share of the plain token's. A level is what a draft of six levels takes beyond one of two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from interleaved import run_script

from mlx_redrafter import load
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.drafter_files import load_drafter
from mlx_redrafter.tree import DraftTree

SHORT, LONG = 2, 6
CONTEXT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the target")
    parser.add_argument("--drafter", required=True, nargs="+", help="directories of its heads")
    parser.add_argument("--width", type=int, nargs="+", default=[1, 4], help="beams")
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    plain, _ = load(arguments.model, drafter=False)
    cache = plain.target.make_cache()
    list(plain.target.fill([7] * CONTEXT, cache))
    root = DraftTree.root_only(mx.array([5]))
    work: dict[object, Callable[[], mx.array]] = {
        "plain": lambda: plain.target.verify(root, cache)[0]
    }
    for path in arguments.drafter:
        drafter = load_drafter(path)
        drafter.set_dtype(plain.target.dtype)
        model = SpeculativeModel(plain.target, drafter)
        for width in arguments.width:
            for length in (SHORT, LONG):
                work[path, width, length] = draft(model, BeamShape(width, length))
    plain.target.take_cores(2)
    seconds = measured(work, arguments.rounds)
    token = seconds["plain"]
    print(f"plain token {1e3 * token:.2f} ms")
    for path in arguments.drafter:
        for width in arguments.width:
            level = (seconds[path, width, LONG] - seconds[path, width, SHORT]) / (LONG - SHORT)
            print(f"{path}, width {width}: level {1e3 * level:.2f} ms, {level / token:.1%}")


def draft(model: SpeculativeModel, shape: BeamShape) -> Callable[[], mx.array]:
    """A draft of that shape, to be evaluated."""
    search = model.source(shape, SamplingConfig(), timed=False)
    assert search is not None
    told = model.blank_input(None)
    return lambda: search.together([told])[0].log_probs


def measured(work: dict[object, Callable[[], mx.array]], rounds: int) -> dict[object, float]:
    """Median seconds of each, all in turn; the first round is not counted."""
    times: dict[object, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, call in work.items():
            start = time.perf_counter()
            mx.eval(call())
            times[name].append(time.perf_counter() - start)
    return {name: median(one[1:]) for name, one in times.items()}


if __name__ == "__main__":
    run_script(main)
