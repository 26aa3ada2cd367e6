"""A target that several machines share: mlx-lm's own sharding, checked before and after.

Tensor parallel: each rank holds some heads and a part of each feed-forward layer, and two sums a
layer bring the parts together. Pipeline: each rank holds some layers, and hidden states go from one
to the next. Either way every rank ends up with the same hidden state and logits, so a drafter that
each of them holds whole drafts the same tree everywhere, without a word between them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm

from .. import __version__
from ..errors import RedrafterError, SharedError
from ..system.ranks import Ranks

_HEADS = ("num_attention_heads", "num_key_value_heads")
_DIGEST_WORDS = 4
_OPTIONS = "the options"


@contextmanager
def fail_together(ranks: Ranks | None) -> Iterator[None]:
    """What fails on one rank inside the block ends all of them, with its sentence.

    Args:
        ranks: All of them; None for one alone.

    Raises:
        RedrafterError: On every rank, if one failed; it names the rank, unless all failed alike.
    """
    if ranks is None:
        yield
        return
    sentence = ""
    try:
        yield
    except RedrafterError as error:
        sentence = str(error)
    said = ranks.gather_texts(sentence)
    failed = [rank for rank, text in enumerate(said) if text]
    if failed:
        text = said[failed[0]]
        alike = all(other == text for other in said)
        raise SharedError(text if alike else f"Rank {failed[0]} fails: {text}")


def refuse_layers(layers: Sequence[int]) -> None:
    """Refuse a drafter that reads layers, in a pipeline, where each machine has only some.

    Raises:
        RedrafterError: If it reads any.
    """
    if layers:
        raise SharedError(
            "This drafter reads hidden states of inner layers, which a pipeline leaves on other "
            "machines: leave --pipeline out, or use another drafter."
        )


def check_same(
    ranks: Ranks,
    config: Mapping[str, Any],
    weights: Sequence[Path],
    drafter: Sequence[Path],
    options: Mapping[str, Any],
) -> None:
    """Refuse ranks that would not compute the same.

    Args:
        ranks: All of them.
        config: The model's configuration here.
        weights: The model's files here.
        drafter: The drafter's; none where there is no drafter.
        options: What else the model is loaded with.

    Raises:
        RedrafterError: Naming what differs, and on which rank.
    """
    here = {
        _OPTIONS: json.dumps(options, sort_keys=True, default=str),
        "mlx_redrafter": __version__,
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "the model's configuration": json.dumps(config, sort_keys=True, default=str),
        "the weights": _fingerprints(weights),
        "the drafter": _fingerprints(drafter),
    }
    names = list(here)
    every = ranks.gather([word for name in names for word in _words(repr(here[name]))])
    for place, name in enumerate(names):
        own = slice(place * _DIGEST_WORDS, (place + 1) * _DIGEST_WORDS)
        differing = [rank for rank, row in enumerate(every) if row[own] != every[0][own]]
        if differing:
            which = ", ".join(map(str, differing))
            if name == _OPTIONS:
                raise SharedError(
                    f"Rank {which} loads the model with other options than rank 0: make the same "
                    "calls on every rank."
                )
            raise SharedError(
                f"Rank {which} has another version of {name} than rank 0: give all machines the "
                "same."
            )


def shard(model: nn.Module, config: Mapping[str, Any], ranks: Ranks, *, pipeline: bool) -> None:
    """Leave to each rank its part of a model whose weights are not read yet.

    Args:
        model: As mlx-lm loads it.
        config: Its configuration.
        ranks: Who shares it.
        pipeline: Whole layers for each rank, instead of a part of each layer.

    Raises:
        RedrafterError: If the model cannot be shared so, or not by so many.
    """
    kind = config.get("model_type")
    inner: Any = getattr(model, "model", None)
    pipelines, shards = hasattr(inner, "pipeline"), hasattr(model, "shard")
    if not (pipelines if pipeline else shards):
        other = (
            "; it can be with --pipeline (pipeline=True)"
            if pipelines and not pipeline
            else "; it can be without --pipeline"
            if shards
            else ""
        )
        how = "by layers" if pipeline else "within layers"
        raise SharedError(
            f"mlx-lm {mlx_lm.__version__} does not share the architecture '{kind}' {how} among "
            f"machines{other}."
        )
    group = mx.distributed.init()
    if pipeline:
        layers = len(inner.layers)
        if layers < ranks.size:
            raise SharedError(
                f"The model's {layers} layers are too few for {ranks.size} machines: use fewer."
            )
        inner.pipeline(group)
        return
    _check_heads(config, ranks.size)
    try:
        model.shard(group)
    except ValueError as error:
        raise SharedError(
            f"The model cannot be divided among {ranks.size} machines "
            f"({' '.join(str(error).split())}): use another number."
        ) from error


def _check_heads(config: Mapping[str, Any], size: int) -> None:
    for holder in (config, config.get("text_config")):
        for name in _HEADS:
            count = holder.get(name) if isinstance(holder, Mapping) else None
            if isinstance(count, int) and count % size:
                what = name.removeprefix("num_").replace("_", " ")
                raise SharedError(
                    f"The model's {count} {what} cannot be divided among {size} machines: use "
                    "another number of machines, or --pipeline where the architecture has it."
                )


def _fingerprints(files: Sequence[Path]) -> list[tuple[str, str]]:
    return [(file.name, _fingerprint(file)) for file in files]


def _fingerprint(file: Path) -> str:
    """Of a file's size and its header, which names all tensors: enough to tell versions apart."""
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(0, file.stat().st_size - (1 << 16)))
        tail = opened.read()
    return hashlib.sha256(head + tail + str(file.stat().st_size).encode()).hexdigest()


def _words(text: str) -> list[float]:
    """A digest as numbers that float64 keeps."""
    digest = hashlib.sha256(text.encode()).digest()
    return [float(int.from_bytes(digest[6 * i : 6 * i + 6], "big")) for i in range(_DIGEST_WORDS)]
