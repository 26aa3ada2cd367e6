"""What a model's forward depends on beside its arrays: plain numbers and words on its modules."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeGuard

import mlx.nn as nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PLAIN = frozenset((bool, int, float, str))
_OURS = "mlx_redrafter."
# Of modules from here the model's configuration says all.
_CONFIGURED = ("mlx.", "mlx_lm.models.", _OURS)

Settings = dict[str, Any]


def settings_of(module: nn.Module) -> Settings:
    """A module's public plain attributes, as an adapter's ``scale``."""
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in _PLAIN and name[0] != "_"
    }


def adapted_settings(model: nn.Module) -> list[list[Any]]:
    """Names and settings of the layers that were put into a model, as adapters are.

    The configuration says nothing of them, and the others' settings follow from it.
    """
    known = type(model).__module__  # a checkpoint may bring its own code
    return [
        [name, sorted(settings_of(module).items())]
        for name, module in sorted(model.named_modules(), key=lambda entry: entry[0])
        if not type(module).__module__.startswith(_CONFIGURED) and type(module).__module__ != known
    ]


def configuration_of(model: nn.Module) -> Settings | None:
    """The configuration that mlx-lm made the model from; None where it keeps none.

    Nearly all keep it as ``args``; the others' is named as they like, mostly ``config``. A draft
    head's own is no such one: who asks for its fingerprint adds it.
    """
    arguments = getattr(model, "args", None)
    if _is_configuration(arguments):
        return dataclasses.asdict(arguments)
    found = {
        name: dataclasses.asdict(value)
        for name, value in sorted(vars(model).items())
        if _is_configuration(value) and not type(value).__module__.startswith(_OURS)
    }
    return found or None


def _is_configuration(value: Any) -> TypeGuard[DataclassInstance]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
