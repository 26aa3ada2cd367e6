"""Which weights a cache's rows are of: in this process by their arrays, in files by numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten

# Numbers of each parameter that are looked at.
SAMPLES = 64
# Multiples of it, modulo 1, lie evenly and in no step with the width of a matrix.
_GOLDEN = 0.6180339887498949

References = list[weakref.ref[mx.array]]


class ModelWeights:
    """The weights of a model, which they do not keep alive.

    Args:
        model: mlx-lm's.
    """

    def __init__(self, model: nn.Module):
        self._model = weakref.ref(model)
        self._before = dict(tree_flatten(model.parameters()))
        self._replaced: set[str] = set()
        # The modules, and the parameters' names there.
        self._places: list[tuple[weakref.ref[nn.Module], str]] = []

    def ran(self) -> None:
        """The model has run for the first time: what it changed itself is put back.

        A forward of Gemma 3n replaces parameters that it clips.
        """
        model = self._model()
        assert model is not None
        before, self._before = self._before, {}
        modules = dict(model.named_modules())
        for name, array in tree_flatten(model.parameters()):
            if name in before and before[name] is not array:
                path, _, own = name.rpartition(".")
                modules[path][own] = before[name]
                self._places.append((weakref.ref(modules[path]), own))
                self._replaced.add(name)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A forward leaves the weights as they are.

        What it would put in their place is not computed yet, and could be in its own thread alone.
        """
        modules = [(place(), name) for place, name in self._places]
        held = [(module, name, module[name]) for module, name in modules if module is not None]
        try:
            yield
        finally:
            for module, name, array in held:
                module[name] = array

    def references(self) -> References | None:
        """The weights that it has now; None where it is not there any more."""
        model = self._model()
        if model is None:
            return None
        named = tree_flatten(model.parameters())
        # While an array lives there is one weak reference to it, and a dead one is nobody's.
        return [weakref.ref(array) for name, array in named if name not in self._replaced]

    def identity(self) -> dict[str, str]:
        """:func:`identity_of` the model, which has to be there."""
        model = self._model()
        assert model is not None
        return identity_of(model)


def same(known: References, now: References) -> bool:
    """Whether two lists name the same arrays; numbers changed within one are not seen."""
    return len(known) == len(now) and all(map(operator.is_, known, now))


def identity_of(model: nn.Module) -> dict[str, str]:
    """What a model's rows depend on, the coarsest first; equal for equal loads in any process.

    Returns:
        "mlx_lm": its release. "model": a digest of names, shapes, dtypes, quantisation and
        configuration. "weights": a digest of some numbers of every parameter.
    """
    parameters = sorted(tree_flatten(model.parameters()))
    modules = sorted(model.named_modules(), key=lambda entry: entry[0])
    layout = [
        [[name, list(array.shape), str(array.dtype)] for name, array in parameters],
        [[name, _quantization(module)] for name, module in modules],
        _arguments(model),
    ]
    return {
        "mlx_lm": mlx_lm.__version__,
        "model": _digest(json.dumps(layout, skipkeys=True, default=_kind).encode()),
        "weights": _digest(_sample([array for _, array in parameters])),
    }


def fingerprint(module: nn.Module) -> str:
    """:func:`identity_of` in one digest."""
    return _digest(json.dumps(identity_of(module)).encode())


def _arguments(model: nn.Module) -> dict[str, Any] | None:
    """The configuration that mlx-lm made the model from."""
    arguments: Any = getattr(model, "args", None)
    if not dataclasses.is_dataclass(arguments) or isinstance(arguments, type):
        return None
    return dataclasses.asdict(arguments)


def _quantization(module: nn.Module) -> list[Any]:
    return [getattr(module, name, None) for name in ("bits", "group_size", "mode")]


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _sample(arrays: Sequence[mx.array]) -> bytes:
    """The bytes of some numbers of each array, in order."""
    parts = [mx.zeros((0,), dtype=mx.uint8)]
    for array in arrays:
        if array.size:
            spread = np.arange(min(SAMPLES, array.size)) * _GOLDEN % 1.0
            places = mx.array((spread * array.size).astype(np.int64))
            parts.append(mx.take(array.reshape(-1), places).view(mx.uint8))
    taken: Any = mx.concatenate(parts)
    return bytes(memoryview(taken))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
