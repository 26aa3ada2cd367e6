"""How long a text a model was made for."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def context_limit(model: nn.Module) -> int | None:
    """Longest context in tokens as an mlx-lm model's configuration has it, None if it has none."""
    arguments: Any = getattr(model, "args", None)
    for holder in (arguments, getattr(arguments, "text_config", None)):
        for key in _KEYS:
            value = holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)
            if isinstance(value, int) and value > 0:
                return value
    return None
