"""How fast a head with a memory is trained, and what share of the machine's peak that is.

    python experiments/training_rate.py --model smollm2 --data chats/ --seconds 60

One step's products are counted: the target's forward, the head's forward and backward, and by
themselves those of the optimiser (Muon makes every matrix orthogonal by some products of its own
size, once a step). The peak is that of a large product of mlx's own, float32, timed between the
steps in the same process: OpenBLAS on a CPU. Without --data, rows of random tokens are used, as
long as --lengths says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
import numpy as np
from interleaved import run_script
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from mlx_redrafter import load
from mlx_redrafter.drafting.memory_drafter import MemoryDrafter
from mlx_redrafter.system.device import on_gpu
from mlx_redrafter.target.target import Target
from mlx_redrafter.training import DistillationConfig, TokenRow, tokenize
from mlx_redrafter.training.hardware import unpacked, usual_positions
from mlx_redrafter.training.initial_drafter import MemoryShape, make_memory_drafter
from mlx_redrafter.training.sources import read_data
from mlx_redrafter.training.text_batches import TextBatches
from mlx_redrafter.training.text_loss import TextBatch
from mlx_redrafter.training.trainer import Trainer

PEAK_SIDE = 2048  # of the square matrices whose product gives the peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the target")
    parser.add_argument("--data", help="as the training command takes it")
    parser.add_argument("--records", type=int, default=2000, help="of the data, at most so many")
    parser.add_argument("--lengths", type=int, nargs=2, default=[64, 512], help="of random rows")
    parser.add_argument("--unroll", type=int, default=7)
    parser.add_argument("--positions", type=int, help="tokens a step (default: the trainer's)")
    parser.add_argument("--draft-vocab-size", type=int, default=8192)
    parser.add_argument("--state-size", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, of each kind")
    parser.add_argument("--keep", action="store_true", help="also with the features kept")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model, drafter=False)
    target = model.target
    rows = rows_of(arguments, tokenizer, target.vocab_size)
    drafter = make_memory_drafter(
        target,
        np.bincount(np.concatenate([row.tokens for row in rows]), minlength=target.vocab_size),
        shape=MemoryShape(state_size=arguments.state_size),
        draft_vocab_size=arguments.draft_vocab_size,
    )
    other = unpacked(model)
    target = target if other is None else other.target
    positions = arguments.positions or usual_positions(drafter.config, arguments.unroll)
    config = DistillationConfig(
        unroll=arguments.unroll, positions_per_step=positions, steps=1_000_000
    )
    state = f"target {target.dtype}, unpacked: {other is not None}"
    print(f"{mx.device_info()}; {state}; {len(rows)} rows")
    for keep in [False, True] if arguments.keep else [False]:
        measure(target, drafter, rows, config, keep, arguments.seconds)


def rows_of(arguments: argparse.Namespace, tokenizer: Any, vocab_size: int) -> list[TokenRow]:
    if arguments.data:
        records, _ = read_data(arguments.data, held_out=1, max_records=arguments.records)
        return tokenize(records, tokenizer, 1024)
    rng = np.random.default_rng(0)
    lengths = rng.integers(*arguments.lengths, arguments.records)
    return [
        TokenRow(rng.integers(0, vocab_size, n).astype(np.int32), np.arange(n) >= 8)
        for n in lengths
    ]


def measure(
    target: Target,
    drafter: MemoryDrafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
    keep: bool,
    seconds: float,
) -> None:
    source = TextBatches(target, drafter, rows, config, keep=keep)
    steps = stepping(source, Trainer(target, drafter, config))
    # All rows are seen once before they count as kept, and on a GPU most shapes.
    for _ in range(len(source.groups) if keep else 40 if on_gpu() else 1):
        next(steps)
    matrix_rate()
    mx.reset_peak_memory()
    done: list[TextBatch] = []
    rates, took = [], 0.0
    while took < seconds:
        began = time.perf_counter()
        done += [next(steps) for _ in range(20 if on_gpu() else 1)]
        mx.synchronize()
        took += time.perf_counter() - began
        rates.append(matrix_rate())
    peak = median(rates)
    anchors = sum(int(np.array(batch.weights[:, 0].sum())) for batch in done)
    tokens = sum(batch.tokens.size for batch in done)
    operations = sum(float(step_operations(target, drafter, batch, keep)) for batch in done)
    optimiser = len(done) * float(optimiser_operations(drafter))
    named = "features kept" if keep else "target run anew"
    print(
        f"{named}: {len(done)} steps of {config.positions_per_step} tokens at most, unroll "
        f"{config.unroll}: {anchors / took:,.0f} anchors/s ({tokens / took:,.0f} tokens/s), "
        f"{operations / tokens / 1e6:.0f} MFLOP a token, {operations / took / 1e9:,.1f} GFLOP/s "
        f"and {optimiser / took / 1e9:,.1f} of the optimiser; a plain product reaches "
        f"{peak / 1e9:,.1f} ({min(rates) / 1e9:,.1f} to {max(rates) / 1e9:,.1f}): "
        f"{operations / took / peak:.0%}, with the optimiser "
        f"{(operations + optimiser) / took / peak:.0%}; "
        f"peak memory {mx.get_peak_memory() / 1e9:.1f} GB",
        flush=True,
    )


def stepping(source: TextBatches, trainer: Trainer) -> Iterator[TextBatch]:
    """Steps as the training loop makes them: the next batch is made while one is learned from."""
    ahead = source.batch(trainer.step)
    while True:
        batch = ahead
        loss = trainer.begin_step([batch])
        ahead = source.batch(trainer.step + 1)
        mx.async_eval(ahead)
        if np.isnan(trainer.end_step(loss)):
            raise SystemExit("The loss is not a finite number.")
        nothing = mx.zeros((0,))
        yield batch._replace(hidden=nothing, probs=nothing)


def matrix_rate() -> float:
    """Floating-point operations a second of a large float32 product."""
    made = one = mx.random.normal((PEAK_SIDE, PEAK_SIDE))
    mx.eval(one)
    repeats = 20 if on_gpu() else 2
    began = time.perf_counter()
    for _ in range(repeats):
        made = made @ one
    mx.eval(made)
    return repeats * 2 * PEAK_SIDE**3 / (time.perf_counter() - began)


def step_operations(target: Target, drafter: MemoryDrafter, batch: TextBatch, keep: bool) -> int:
    """Operations in the products of a step over a batch; backward is counted as twice forward.

    Of matrices that read what is not trained only half of the backward is needed.
    """
    texts, length = batch.tokens.shape
    positions, unroll = texts * length, batch.weights.shape[-1]
    head, config = drafter, drafter.config
    inner = config.memory_heads * config.memory_head_dim
    once = sum(layer.weight.size for layer in (head.fuse, head.token_value, head.rnn_w))
    twice = head.key.weight.size + head.value.weight.size
    each = [head.rnn_u, head.query, head.recall, head.gate_up, head.down, head.exit]
    step = sum(layer.weight.size for layer in each) + head.lm_head[0].weight.size
    attention = 2 * length * inner  # scores and sums, all of the square
    made = 4 * once + 6 * twice + unroll * 6 * (step + attention)
    if keep:
        made += 2 * config.hidden_size * config.head_size
    else:
        made += 2 * get_total_parameters(target.model)  # tied rows are multiplied with once
    return positions * made


def optimiser_operations(drafter: MemoryDrafter) -> int:
    """Operations in the products of Muon's update, see ``training.trainer``."""
    made = 0
    for path, weight in tree_flatten(drafter.trainable_parameters()):
        if weight.ndim == 2 and not path.startswith("lm_head"):
            few, many = sorted(weight.shape)
            made += 5 * (4 * few**2 * many + 2 * few**3)
    return made


if __name__ == "__main__":
    run_script(main)
