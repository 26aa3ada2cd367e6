"""A model in words: where it runs, how it is stored, what it is for."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...drafting.shape import BeamShape
from ...engine.model import SpeculativeModel
from ...system.device import on_gpu
from ...system.visible import visible_line
from ..amounts import count_words
from .answer import ModelFacts

# A front matter of YAML, a heading, a table, code or a picture is no description.
_NO_PROSE = re.compile(r"(?:[#|>`<!\[*-]|\d+\.)")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LONGEST_PURPOSE = 160


def describe(model: SpeculativeModel, path: str | Path) -> ModelFacts:
    """What the screen says about a model that was loaded from ``path``."""
    shape = BeamShape()
    return ModelFacts(
        name=f"{model.name or 'model'}, {parameters(model.target.model)}",
        drafter=drafter_words(model),
        device=device_words(),
        precision=precision_words(model.target.model),
        beam=(shape.width, shape.length),
        purpose=purpose(Path(path)),
        copies=model.target.refusal is None,
    )


def purpose(directory: Path) -> str | None:
    """The first sentence of a model's README.md, None where there is none."""
    try:
        text = (directory / "README.md").read_text("utf-8")
    except (OSError, ValueError):
        return None
    for paragraph in _FRONT_MATTER.sub("", text).split("\n\n"):
        line = visible_line(paragraph)
        if line and not _NO_PROSE.match(line):
            sentence = re.split(r"(?<=[.!?]) ", line)[0]
            return textwrap.shorten(sentence, LONGEST_PURPOSE, placeholder=" ...")
    return None


def parameters(module: nn.Module) -> str:
    """Number of parameters, quantised ones counted as what they stand for."""
    total = 0
    for _, leaf in module.named_modules():
        own = {k: v for k, v in leaf.items() if isinstance(v, mx.array)}
        bits = getattr(leaf, "bits", None)
        for name, array in own.items():
            if bits and name == "weight" and "scales" in own:
                total += int(array.size) * 32 // bits
            elif not (bits and name in ("scales", "biases")):
                total += int(array.size)
    return f"{count_words(total)} parameters"


def drafter_words(model: SpeculativeModel) -> str | None:
    """A model's drafter in a few words."""
    if model.head is None:
        return None if model.drafter is None else type(model.drafter).__name__
    kind = "recurrent" if model.head.config.rnn else "summing"
    return f"{kind}, {parameters(model.head)}, {precision_words(model.head)}"


def device_words() -> str:
    """The device MLX computes on."""
    device = mx.default_device()
    kind = "GPU" if on_gpu() else "CPU"
    name = mx.device_info(device).get("device_name", "")
    return f"{kind} ({name})" if name else kind


def precision_words(module: nn.Module) -> str:
    """How weights are stored: bits where quantised, else the precision."""
    bits = sorted({int(m.bits) for _, m in module.named_modules() if hasattr(m, "bits")})
    if bits:
        return " and ".join(f"{n}-bit" for n in bits)
    sizes: dict[str, int] = {}
    for _, array in tree_flatten(module.parameters()):
        if mx.issubdtype(array.dtype, mx.floating):
            name = str(array.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + int(array.size)
    return max(sizes, key=lambda name: sizes[name], default="no weights")
