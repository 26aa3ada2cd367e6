"""Make a larger target with the same function out of a smaller Llama bundle.

    python experiments/scale.py --model models/pocket --output build/pocket-scaled

Extra layers whose output projections are zero, and extra feed-forward columns whose down-projection
is zero, change no output, but cost what they would cost in a model of that size. So the drafter's
real acceptance can be timed at a realistic ratio of target to drafter. ``--drafter-exit`` does the
same to the drafter: its added columns feed nothing that it had. The result is a stand-in for timing
and nothing else; wherever its numbers are shown, say so.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx

ROOT = Path(__file__).resolve().parent.parent
MLP = ("gate_proj", "up_proj", "down_proj")


def noise(key: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Ordinary-looking weights: zeros could be skipped by a clever kernel, these cannot."""
    return (mx.random.normal(shape, key=key) * shape[-1] ** -0.5).astype(dtype)


def widen(weights: dict[str, mx.array], layer: int, wide: int, key: mx.array) -> None:
    """Give a layer's feed-forward ``wide`` columns; the added ones end in zeros."""
    for name, part in zip(MLP, mx.random.split(key, 3), strict=True):
        path = f"model.layers.{layer}.mlp.{name}.weight"
        old = weights[path]
        if name == "down_proj":
            added = mx.zeros((old.shape[0], wide - old.shape[1]), dtype=old.dtype)
            weights[path] = mx.concatenate([old, added], axis=1)
        else:
            added = noise(part, (wide - old.shape[0], old.shape[1]), old.dtype)
            weights[path] = mx.concatenate([old, added], axis=0)


def add_layer(weights: dict[str, mx.array], layer: int, key: mx.array) -> None:
    """Append a layer shaped like the first whose two output projections are zero."""
    prefix = "model.layers.0."
    for path in [path for path in weights if path.startswith(prefix)]:
        like = weights[path]
        key, part = mx.random.split(key)
        if path.endswith(("o_proj.weight", "down_proj.weight")):
            value = mx.zeros_like(like)
        elif like.ndim == 1:
            value = like
        else:
            value = noise(part, like.shape, like.dtype)
        weights[f"model.layers.{layer}.{path.removeprefix(prefix)}"] = value


def widen_drafter(source: Path, output: Path, wide: int) -> int:
    """Write a drafter with an ``exit_dim`` of ``wide`` that proposes the same; return its size."""
    if not source.is_dir():
        raise SystemExit(f"--drafter-exit widens a bundle's drafter, and there is no {source}.")
    config = json.loads((source / "config.json").read_text("utf-8"))
    old = config["exit_dim"]
    unusual = {"quantization", "shared_rows", "independent_heads"} & config.keys()
    if unusual or wide <= old or 2 * config["hidden_size"] in (old, wide):
        raise SystemExit(
            f"--drafter-exit widens an unquantised drafter with output rows of its own and "
            f"a projection to its {old} columns, to more than these and not to "
            f"{2 * config['hidden_size']}."
        )
    weights = dict(mx.load(str(source / "model.safetensors")))
    key = mx.random.key(1)
    for path, value in weights.items():
        outputs = path == f"lm_head.{config['num_draft_layers']}.weight"
        inner = path.startswith(("input_proj", "lm_head")) and not outputs
        if path.startswith("lm_head") and value.ndim == 2:
            unused = mx.zeros((value.shape[0], wide - old), dtype=value.dtype)
            value = mx.concatenate([value, unused], axis=1)
        if inner:
            key, part = mx.random.split(key)
            added = noise(part, (wide - old, *value.shape[1:]), value.dtype)
            value = mx.concatenate([value, added], axis=0)
        weights[path] = value
    mx.save_safetensors(str(output / "model.safetensors"), weights, metadata={"format": "mlx"})
    text = json.dumps(config | {"exit_dim": wide}, indent=2) + "\n"
    (output / "config.json").write_text(text, "utf-8")
    return sum(value.size for value in weights.values())


def scale(source: Path, output: Path, layers: int, feed_forward: int) -> int:
    """Write the larger bundle; return its number of parameters."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    if config["model_type"] != "llama" or "quantization" in config:
        raise SystemExit("Only unquantised Llama bundles can be scaled.")
    weights: dict[str, mx.array] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights.update(mx.load(str(path)))
    key = mx.random.key(0)
    old = config["num_hidden_layers"]
    for layer in range(old):
        key, part = mx.random.split(key)
        widen(weights, layer, feed_forward, part)
    for layer in range(old, layers):
        key, part = mx.random.split(key)
        add_layer(weights, layer, part)
    config.update(num_hidden_layers=layers, intermediate_size=feed_forward)
    if output.exists():
        shutil.rmtree(output)
    ignored = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json", "config.json")
    shutil.copytree(source, output, ignore=ignored)
    if (source / "drafter").is_dir():
        shutil.copytree(source / "drafter", output / "drafter", dirs_exist_ok=True)
    mx.save_safetensors(str(output / "model.safetensors"), weights, metadata={"format": "mlx"})
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return sum(value.size for value in weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models/pocket")
    parser.add_argument("--output", type=Path, default=ROOT / "build/pocket-scaled")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--feed-forward", type=int, default=8192)
    parser.add_argument("--drafter-exit", type=int, help="columns of the drafter, too")
    args = parser.parse_args()
    size = scale(args.model, args.output, args.layers, args.feed_forward)
    print(f"{args.output}: {size / 1e6:.0f} M parameters, the same function as {args.model}")
    if args.drafter_exit is not None:
        own = widen_drafter(args.model / "drafter", args.output / "drafter", args.drafter_exit)
        print(f"its drafter: {own / 1e6:.1f} M parameters, {own / size:.1%} of the target's")


if __name__ == "__main__":
    main()
