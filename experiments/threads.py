"""Decode thousands of texts in eight threads on one model object, and compare each.

python experiments/threads.py [--texts 3000] [--models llama:sliding llama+memory qwen3_next lfm2]

Plain, drafted and copied texts, single, in turns and in batches, greedy and sampled, with penalties
and logits processors, while threads take turns as often as can be (a switch interval of 1e-5 s).
Every text that is not the one that plain decoding makes alone is listed; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from thread_texts import PROMPTS, THREADS, faults, model_of, ways_of  # noqa: E402

import mlx_redrafter  # noqa: E402, F401  (loads OpenBLAS before mlx)

MODELS = ("llama:sliding", "llama+memory", "qwen3_next", "lfm2")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=3000, help="in all")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--interval", type=float, default=1e-5, help="seconds between switches")
    options = parser.parse_args()
    count = 0
    for name in options.models:
        ways = ways_of(model_of(name))
        each = len(ways) * len(PROMPTS)
        rounds = -(-options.texts // (each * len(options.models)))
        before = sys.getswitchinterval()
        sys.setswitchinterval(options.interval)
        started = time.perf_counter()
        found = list(faults(ways, rounds))
        took = time.perf_counter() - started
        sys.setswitchinterval(before)
        print(
            f"{name}: {each * rounds:,} texts in {len(ways)} ways, {THREADS} threads, "
            f"{took:.0f} s: {len(found)} faults",
            flush=True,
        )
        for fault in found:
            print(f"  {fault}")
        count += len(found)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
