"""Attention over the rows of a tree at once, and in pieces that mlx's vector kernel takes.

    python experiments/attention_pieces.py [--contexts 512 4096 16384] [--rows 8 16 32]

mlx's vector attention takes at most 8 query rows, and rows times query heads of a key head at most
32. A tree of more rows goes through another kernel; cut into pieces of 32 // group rows, each with
its rows of the mask, it would not. Shown is the time of both, for some layouts of heads, on the
device that mlx uses here: pieces pay where the last column is above 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from interleaved import run_script
from rich.console import Console
from rich.table import Table

# Query heads, key heads and head size: Llama 3.1 8B, SmolLM2-135M, Qwen 3 1.7B.
LAYOUTS = ((32, 8, 128), (9, 3, 64), (16, 8, 128))
VECTOR_ROWS, VECTOR_PRODUCT = 8, 32
CALLS = 8  # that are evaluated together, so that launching one overlaps with another


def seconds(call: Callable[[], mx.array], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        mx.eval([call() for _ in range(CALLS)])
        times.append((time.perf_counter() - started) / CALLS)
    return statistics.median(times[2:])


def compare(layout: tuple[int, int, int], context: int, rows: int, repeats: int) -> list[float]:
    """Milliseconds at once and in pieces."""
    heads, key_heads, size = layout
    dtype = mx.float32 if mx.default_device() == mx.cpu else mx.float16
    keys, values = (
        mx.random.normal((1, key_heads, context + rows, size)).astype(dtype) for _ in range(2)
    )
    queries = mx.random.normal((1, heads, rows, size)).astype(dtype)
    mask = mx.random.uniform(shape=(rows, context + rows)) < 0.9
    mx.eval(keys, values, queries, mask)
    piece = min(VECTOR_ROWS, max(1, VECTOR_PRODUCT * key_heads // heads))

    def attend(first: int, end: int) -> mx.array:
        return mx.fast.scaled_dot_product_attention(
            queries[:, :, first:end], keys, values, scale=size**-0.5, mask=mask[first:end]
        )

    def in_pieces() -> mx.array:
        parts = [attend(first, first + piece) for first in range(0, rows, piece)]
        return mx.concatenate(parts, axis=2)

    return [1e3 * seconds(call, repeats) for call in (lambda: attend(0, rows), in_pieces)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    grid = Table(title=f"attention, {mx.default_device()}", title_justify="left")
    for name in ("heads", "context", "rows", "at once, ms", "pieces, ms", "at once / pieces"):
        grid.add_column(name, justify="right")
    for layout in LAYOUTS:
        for context in args.contexts:
            for rows in args.rows:
                whole, pieces = compare(layout, context, rows, args.repeats)
                grid.add_row(
                    f"{layout[0]}/{layout[1]}", str(context), str(rows), f"{whole:.3f}",
                    f"{pieces:.3f}", f"{whole / pieces:.2f}",
                )  # fmt: skip
    Console().print(grid)


if __name__ == "__main__":
    run_script(main)
