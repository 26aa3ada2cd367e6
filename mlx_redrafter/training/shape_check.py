"""What a run's drafter cannot be, told before the target's answers take hours."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drafting.shared_head import shareable
from ..errors import RedrafterError
from ..target.target import Target
from .data import special_tokens
from .initial_drafter import MemoryShape, drafter_to_go_on_from, head_width
from .options import TrainingOptions, refuse_disk
from .vocabulary import draft_vocabulary


def check_first_drafter(
    options: TrainingOptions, target: Target, tokenizer: Any, name: str
) -> None:
    """Refuse what ``first_drafter`` would, as far as it can be known without the data's tokens.

    Args:
        options: Of the run.
        target: What it drafts for.
        tokenizer: The target's.
        name: Of the target.

    Raises:
        RedrafterError: If the options do not fit the target, or the drafter to continue from.
    """
    if options.start_from is not None:
        drafter = drafter_to_go_on_from(
            options.start_from, target, tokenizer, unroll=options.unroll,
            lookback=options.lookback, name=name,
        )  # fmt: skip
        if drafter.remembers:
            refuse_disk(options)
        return
    size = options.draft_vocab_size
    if size is not None and size < target.vocab_size:
        nothing_counted = np.zeros(target.vocab_size, dtype=np.int64)
        draft_vocabulary(nothing_counted, size, special_tokens(tokenizer))
    if options.memory:
        _check_layers(options, target)
        return
    if options.shared_rows:
        shareable(target)
    narrow = options.shared_rows or options.independent
    head_width(options.exit_dim, target.hidden_size, narrow=narrow)


def _check_layers(options: TrainingOptions, target: Target) -> None:
    number = len(target.model.layers)
    if not all(0 <= layer < number for layer in options.layers or ()):
        raise RedrafterError(
            f"target_layers is {options.target_layers}, but this model has the layers 0 to "
            f"{number - 1}: name some of these."
        )
    shape = MemoryShape(options.layers).entries(target.hidden_size, number)
    target.check_layers(shape["target_layers"])
