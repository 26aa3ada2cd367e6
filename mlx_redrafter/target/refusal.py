"""Why drafts cannot be verified with a model, as the reason after "no drafting with this model"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
import mlx_lm

from . import architectures
from .hooks import missing_hooks


def find_refusal(
    model: nn.Module, unknown: Sequence[tuple[int, Any]], *, recurrent: bool, attends: bool
) -> str | None:
    """What keeps a hooked model from verifying drafts; None if nothing does.

    Args:
        model: An mlx-lm model.
        unknown: Its layers whose caches are of no known kind, by number.
        recurrent: Whether layers carry state.
        attends: Whether there are layers that are not recurrent.
    """
    kind = architectures.architecture_of(model)
    if kind in architectures.REFUSED:
        return f"the architecture '{kind}' cannot verify drafts: {architectures.REFUSED[kind]}"
    for index, layer in unknown:
        return (
            f"layer {index} of the architecture '{kind}' keeps a {type(layer).__name__}, "
            "which cannot take a rejected draft back"
        )
    missing = missing_hooks(model, kind, recurrent=recurrent, attends=attends)
    if missing and kind in architectures.TREES:
        return (
            f"{missing[0]} could not be found in the architecture '{kind}' of mlx-lm "
            f"{mlx_lm.__version__}, so drafts would be verified wrongly (another release of "
            "mlx-lm may name them otherwise)"
        )
    return None


def unexplained_logits(architecture: str) -> str:
    """The reason where output rows times hidden states are not a model's logits."""
    return (
        f"the architecture '{architecture}' does something between its final hidden state and its "
        "logits that is not known here, so a drafter would read the wrong numbers"
    )
