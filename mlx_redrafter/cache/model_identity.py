"""Which weights a cache's rows are of: in this process by their arrays, in files by numbers."""

from __future__ import annotations

import hashlib
import json
import operator
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten

from .module_settings import Settings, adapted_settings, configuration_of, settings_of

# Numbers of each parameter that are looked at.
SAMPLES = 64
# Multiples of it, modulo 1, lie evenly and in no step with the width of a matrix.
_GOLDEN = 0.6180339887498949

# A module's ``id``, and a parameter's name there.
Place = tuple[int, str]


class References(NamedTuple):
    """What rows were computed with.

    Attributes:
        arrays: Weak references to the weights: they are not kept alive.
        settings: Of every module.
    """

    arrays: list[weakref.ref[mx.array]]
    settings: list[Settings]


class ModelWeights:
    """The weights of a model, which they do not keep alive.

    Args:
        model: mlx-lm's.
        part: Which part of a shared model it is, such as "rank 1 of 2"; empty for a whole one.
    """

    def __init__(self, model: nn.Module, part: str = ""):
        self._part = part
        self._model = weakref.ref(model)
        self._before = dict(tree_flatten(model.parameters()))
        self._replaced: set[Place] = set()
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
                self._replaced.add((id(modules[path]), own))

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
        """The weights and settings that it has now; None where it is not there any more."""
        model = self._model()
        return None if model is None else _references(model, self._replaced)

    def identity(self) -> dict[str, str]:
        """:func:`identity_of` the model, which has to be there, and "part" if it is one."""
        model = self._model()
        assert model is not None
        part = {"part": self._part} if self._part else {}
        return {**identity_of(model), **part}


def _references(model: nn.Module, without: Collection[Place]) -> References:
    """The parameters and settings that a model has now.

    Every text begins with this, so it goes through the modules once, where mlx's own functions
    would through all names as well.

    Args:
        model: mlx-lm's.
        without: Parameters that are left out.
    """
    found = References([], [])
    rest: list[Any] = [model]
    while rest:
        part = rest.pop()
        if isinstance(part, nn.Module):
            found.settings.append(settings_of(part))
            # As in mlx, arrays are no parameters where an underscore begins their names.
            held = [value for name, value in part.items() if name[0] != "_"]
            if without:
                own = id(part)
                held = [v for k, v in part.items() if k[0] != "_" and (own, k) not in without]
        else:
            held = list(part.values()) if isinstance(part, dict) else part
        for value in held:
            if isinstance(value, mx.array):
                # While it lives there is one weak reference to it, and a dead one is nobody's.
                found.arrays.append(weakref.ref(value))
            elif isinstance(value, dict | list):
                rest.append(value)
    return found


def same(known: References, now: References) -> bool:
    """Whether both name the same arrays, and settings; numbers changed in an array are not seen."""
    if len(known.arrays) != len(now.arrays) or known.settings != now.settings:
        return False
    return all(map(operator.is_, known.arrays, now.arrays))


def identity_of(model: nn.Module) -> dict[str, str]:
    """What a model's rows depend on, the coarsest first; equal for equal loads in any process.

    Returns:
        "mlx_lm": its release. "model": a digest of names, shapes, dtypes, quantisation,
        configuration, and adapters' settings. "weights": a digest of some numbers of every
        parameter.
    """
    parameters = sorted(tree_flatten(model.parameters()))
    modules = sorted(model.named_modules(), key=lambda entry: entry[0])
    layout: list[Any] = [
        [[name, list(array.shape), str(array.dtype)] for name, array in parameters],
        [[name, _quantization(module)] for name, module in modules],
        configuration_of(model),
    ]
    adapted = adapted_settings(model)
    if adapted:  # the others' caches were saved without an entry
        layout.append(adapted)
    return {
        "mlx_lm": mlx_lm.__version__,
        "model": _digest(json.dumps(layout, skipkeys=True, default=_kind).encode()),
        "weights": _digest(_sample([array for _, array in parameters])),
    }


def fingerprint(module: nn.Module) -> str:
    """:func:`identity_of` in one digest."""
    return _digest(json.dumps(identity_of(module)).encode())


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
