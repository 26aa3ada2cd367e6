"""How long a text a model was made for, by what its config.json states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
# Where models that also see or hear keep what concerns text.
_NESTED = ("text_config", "language_config", "llm_config")
_SCALINGS = ("rope_scaling", "rope_parameters")
# Scalings whose factor multiplies the stated length, or the original one where it is given. Others
# state the scaled one: Llama 3's factor says how far frequencies are stretched, not the text.
_MULTIPLIES = ("linear", "dynamic", "yarn", "deepseek_yarn", "telechat3-yarn")
# Their config states the scaled length for linear scaling too.
_STATES_SCALED = ("gemma3", "gemma3_text")


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Longest context in tokens, positions stretched by rope scaling included.

    Args:
        config: A model's config.json; mlx-lm's own defaults of missing keys say nothing of a model.

    Returns:
        None where the configuration states no length.
    """
    for holder in (config, *(config.get(name) for name in _NESTED)):
        if not isinstance(holder, Mapping):
            continue
        for key in _KEYS:
            stated = holder.get(key)
            if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
                return _scaled(stated, holder)
    return None


def _scaled(stated: int, config: Mapping[str, Any]) -> int:
    """The stated length, or the one to which positions are stretched if that is longer."""
    for name in _SCALINGS:
        scaling = config.get(name)
        if not isinstance(scaling, Mapping):
            continue
        factor = scaling.get("factor")
        kind = scaling.get("type") or scaling.get("rope_type")  # in mlx-lm's order
        if kind not in _MULTIPLIES or config.get("model_type") in _STATES_SCALED:
            continue
        if not isinstance(factor, int | float) or not 1 <= factor < 2**20:
            continue
        original = scaling.get("original_max_position_embeddings")
        if isinstance(original, int) and original > 0:
            return max(stated, int(original * factor))
        return int(stated * factor)
    return stated
