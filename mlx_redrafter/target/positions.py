"""Whether a model that was built turns anything by its position, by what its modules hold.

Some architectures leave rotary positions out of layers, or of all layers, as their configuration
says. Only a module that says so is believed: where none does, positions may merely have another
name in another release of mlx-lm.
"""

from __future__ import annotations

import mlx.nn as nn

# What stands where a rotary module would, and changes nothing (SmolLM3).
_PLACEHOLDER = "nope"
# An attention module that is told whether to turn, and one that holds nothing to turn with.
_FLAG, _HELD = "use_rope", ("rope", "rotary_emb")


def has_no_rotary(model: nn.Module, *, attends: bool) -> bool:
    """Whether nothing in a model is turned by its position.

    Args:
        model: An mlx-lm model.
        attends: Whether it has layers that are not recurrent. If none, nobody has to say so.
    """
    said = {_turns(module) for module in model.modules()}
    return True not in said and (False in said or not attends)


def _turns(module: nn.Module) -> bool | None:
    """Whether a module turns what passes through it; None if it says nothing of that."""
    kinds = [
        type(value).__name__.lower()
        for name, value in module.items()
        if isinstance(value, nn.Module) and ("rope" in name or "rotary" in name)
    ]
    if any(kind != _PLACEHOLDER for kind in kinds):
        return True
    without = (name for name in _HELD if hasattr(module, name) and getattr(module, name) is None)
    told = not getattr(module, _FLAG, True)
    return False if kinds or told or any(without) else None
