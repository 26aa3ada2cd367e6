"""Damage every file of a bundle, many times over, and see that each is refused in one sentence.

python experiments/damaged_files.py [--bundle models/pocket] [--flips 300] [--seed 0] [--only FILE]
                                    [--convert | --convert-quantized] [--show]

Every damage is loaded and answers a question, in a process of its own kind that is watched: a
traceback, a signal, a sentence that names no file, more than --seconds of computing or more than
--gigabytes are faults and are listed; the exit code is then 1. --show prints every different
sentence.

With --convert, what is damaged is a checkpoint of any kind (safetensors, PyTorch, a directory with
a GGUF file), which is converted first, as convert.py does it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from damage import damaged, files_of  # noqa: E402

REFUSED = "refused: "


CONVERSIONS = ("convert", "convert-quantized")


def try_once(directory: Path, conversion: str | None) -> str:
    """Load a bundle and let it answer; "answered", "refused: why", or what should not be.

    Args:
        directory: The bundle, or the checkpoint to convert to one.
        conversion: One of CONVERSIONS, or None.
    """
    from mlx_redrafter import RedrafterError, convert

    try:
        if conversion is None:
            _answer(directory)
            return "answered"
        with tempfile.TemporaryDirectory() as place:
            out = Path(place, "bundle")
            convert(str(directory), mlx_path=str(out), quantize=conversion != "convert")
            try:
                _answer(out)
            except RedrafterError as error:
                return f"converted, but then: {error}"
        return "answered"
    except RedrafterError as error:
        sentence = str(error)
        if "\n" in sentence:
            return f"more than one line: {sentence}"
        where = str(directory)
        # A template is run long after its file was read.
        named = where in sentence or "chat template" in sentence
        if conversion is None and not named:
            return f"names no file: {sentence}"
        return REFUSED + sentence.replace(where, "BUNDLE")
    except BaseException:
        return traceback.format_exc()


def _answer(directory: Path) -> None:
    from mlx_redrafter import load, stream_generate

    model, tokenizer = load(directory, plan=False)
    prompt = [{"role": "user", "content": "the dog"}] if tokenizer.has_chat_template else "the"
    for _ in stream_generate(model, tokenizer, prompt, max_tokens=4):
        pass


def peak_gigabytes() -> float:
    """The most memory that this process has held.

    On Linux what getrusage tells begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


def work_through(
    bundle: Path,
    work: Path,
    names: list[str],
    seed: int,
    flips: int,
    first: int,
    conversion: str | None = None,
) -> None:
    """Try damages of files from the ``first`` on; one line of JSON each, before and after."""
    import mlx_redrafter.text.loading  # noqa: F401 - start-up is not the first damage's

    everything = (one for name in names for one in damaged(bundle, work, name, seed, flips))
    for number, described in enumerate(everything):
        if number < first:
            continue
        print(json.dumps({"begun": number, "what": described}), flush=True)
        started = time.process_time()  # a busy machine is not the file's fault
        outcome = try_once(work, conversion)
        took = time.process_time() - started
        peak = peak_gigabytes()
        print(json.dumps({"outcome": outcome, "seconds": took, "gigabytes": peak}), flush=True)


def faults_of(
    bundle: Path,
    names: list[str],
    seed: int,
    flips: int,
    seconds: float,
    gigabytes: float,
    sentences: set[str] | None = None,
    conversion: str | None = None,
) -> list[str]:
    """Run the damages of files in watched processes; return what went wrong.

    ``sentences`` is given those that refused, with the bundle's directory as BUNDLE.
    """
    faults, first = [], 0
    sentences = set() if sentences is None else sentences
    while first < flips * len(names):
        with tempfile.TemporaryDirectory() as work:
            arguments = ["--bundle", str(bundle), "--seed", str(seed), "--flips", str(flips)]
            arguments += [] if conversion is None else [f"--{conversion}"]
            worker = [sys.executable, __file__, *arguments, "--worker", work, str(first), *names]
            with tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(worker, stdout=subprocess.PIPE, stderr=errors, text=True)
                found, first = _watch(process, seconds, gigabytes, first, sentences)
        faults += found
    return faults


def _watch(
    process: subprocess.Popen[str],
    seconds: float,
    gigabytes: float,
    first: int,
    sentences: set[str],
) -> tuple[list[str], int]:
    """Read a worker's lines until it ends; return faults and the number to go on with."""
    faults: list[str] = []
    what = "before the first damage"
    assert process.stdout is not None
    while True:
        killer = threading.Timer(15 * seconds, process.kill)  # of a machine that others use too
        killer.start()
        line = process.stdout.readline()
        killer.cancel()
        if not line:
            break
        entry = json.loads(line)
        if "begun" in entry:
            first, what = entry["begun"] + 1, entry["what"]
            continue
        outcome = entry["outcome"]
        if outcome.startswith(REFUSED):
            sentences.add(outcome.removeprefix(REFUSED))
        elif outcome != "answered":
            faults.append(f"{what}: {outcome.strip()}")
        if entry["seconds"] > seconds or entry["gigabytes"] > gigabytes:
            faults.append(f"{what}: {entry['seconds']:.1f} s, {entry['gigabytes']:.2f} GB")
    code = process.wait()
    if code != 0:
        faults.append(f"{what}: the process ended with {code}")
        return faults, first
    return faults, sys.maxsize


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "pocket")
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one file, relative to the bundle")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gigabytes", type=float, default=1)
    for name in CONVERSIONS:
        parser.add_argument(
            f"--{name}", dest="conversion", action="store_const", const=name, help="convert first"
        )
    parser.add_argument("--show", action="store_true", help="every different sentence")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work, first, *names = options.worker
        work_through(
            options.bundle,
            Path(work),
            names,
            options.seed,
            options.flips,
            int(first),
            options.conversion,
        )
        return 0
    count = 0
    for name in [options.only] if options.only else files_of(options.bundle):
        started = time.perf_counter()
        sentences: set[str] = set()
        faults = faults_of(
            options.bundle,
            [name],
            options.seed,
            options.flips,
            options.seconds,
            options.gigabytes,
            sentences,
            options.conversion,
        )
        took = time.perf_counter() - started
        print(f"{name}: {options.flips} damages, {len(faults)} faults, {took:.0f} s", flush=True)
        for fault in faults:
            print(f"  {fault}")
        for sentence in sorted(sentences) if options.show else ():
            print(f"  said: {sentence}")
        count += len(faults)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
