"""Replacing what a module does when it is called, without touching its parameters."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from ..errors import RedrafterError


def set_call(module: nn.Module, prefix: str, call: Any) -> None:
    """Give one module a subclass of its own with another ``__call__``.

    Parameter names, ``isinstance`` and attributes stay as they were.
    """
    base = type(module)
    namespace = {"__call__": call, "__module__": base.__module__, "__reduce_ex__": refuse_copy}
    module.__class__ = type(prefix + base.__name__, (base,), namespace)


def refuse_copy(_object: Any, _protocol: Any = None) -> Any:
    """In place of ``__reduce_ex__``: copied calls would still be those of the original.

    Raises:
        RedrafterError: Always.
    """
    raise RedrafterError(
        "A model that decodes here can be neither copied nor pickled: load it again, or copy "
        "mlx-lm's model before SpeculativeModel takes it."
    )
