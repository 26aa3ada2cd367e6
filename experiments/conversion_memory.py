"""Measure the peak memory of convert.py on a random Llama checkpoint and a drafter for it.

    python experiments/conversion_memory.py --layers 24 --layout safetensors -- -q

What stands behind ``--`` goes to convert.py. Needs PyTorch (the torch extra). The checkpoint is
written to a temporary directory, in bfloat16, four shards for safetensors and two for bin.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, VOCABULARY, SHARDS = 1024, 32000, {"safetensors": 4, "bin": 2}


def write_tokenizer(directory: Path) -> None:
    """One character a token."""
    vocabulary = {"<unk>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(string.printable)}
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "pre_tokenizer": split, "model": model, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_shards(directory: Path, tensors: dict[str, Any], layout: str) -> None:
    """Save as old and new versions of transformers do."""
    import torch
    from safetensors.torch import save_file

    stem = "model" if layout == "safetensors" else "pytorch_model"
    names, count = list(tensors), SHARDS[layout]
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.{layout}"
        part = {name: tensors[name] for name in names[number::count]}
        if layout == "safetensors":
            save_file(part, directory / file)
        else:
            torch.save(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = directory / f"{stem}.{layout}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def write_target(directory: Path, layers: int, layout: str) -> int:
    """A random Llama; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    write_tokenizer(directory)
    config.save_pretrained(directory)
    write_shards(directory, model.state_dict(), layout)
    return sum(parameter.numel() for parameter in model.parameters())


def write_drafter(directory: Path) -> None:
    """A random head of two residual blocks."""
    import torch
    from safetensors.torch import save_file

    sizes = {f"lm_head.{i}.linear.weight": (2 * HIDDEN, 2 * HIDDEN) for i in range(2)}
    sizes |= {f"lm_head.{i}.linear.bias": (2 * HIDDEN,) for i in range(2)}
    sizes |= {"lm_head.2.weight": (VOCABULARY, 2 * HIDDEN)}
    sizes |= {f"rnn_{name}.weight": (HIDDEN, HIDDEN) for name in "uw"} | {"rnn_u.bias": (HIDDEN,)}
    head = {name: torch.randn(size).mul(0.02).to(torch.bfloat16) for name, size in sizes.items()}
    save_file(head, directory / "drafter.safetensors")


def make(directory: str, layers: int, layout: str) -> int:
    """Target and drafter; returns the target's number of parameters."""
    source = Path(directory) / "target"
    source.mkdir()
    write_drafter(Path(directory))
    return write_target(source, layers, layout)


def run_measured(command: list[str]) -> tuple[float, float]:
    """Peak resident memory in bytes and seconds of a program."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("convert.py failed")
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--layout", choices=list(SHARDS), default="safetensors")
    parser.add_argument("flags", nargs="*", help="for convert.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own: a child's peak begins at what its parent holds when it starts.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            parameters = pool.apply(make, (name, arguments.layers, arguments.layout))
        source = Path(name) / "target"
        command = [sys.executable, "convert.py", "--hf-path", str(source), "--mlx-path"]
        command += [f"{name}/out", "--drafter", f"{name}/drafter.safetensors", *arguments.flags]
        peak, seconds = run_measured(command)
        size = sum(path.stat().st_size for path in source.iterdir())
    print(
        f"{parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB {arguments.layout}: "
        f"peak {peak / 1e9:.2f} GB, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
