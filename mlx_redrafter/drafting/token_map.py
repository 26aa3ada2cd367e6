"""Which target tokens a small head proposes."""

from __future__ import annotations

import mlx.core as mx

from ..errors import RedrafterError
from .config import DrafterConfig


def check_token_map(tokens: mx.array, config: DrafterConfig, whose: str = "The drafter's") -> None:
    """Refuse a map of a small head's rows to tokens that is none.

    Tokens that there are not would be embedded, and a token of two rows would be drafted twice.

    Args:
        tokens: The head's ``draft_tokens``; ``config.draft_vocab_size`` is not None.
        config: The head's.
        whose: What the sentence begins with.

    Raises:
        RedrafterError: If they are not target tokens in ascending order.
    """
    good = mx.issubdtype(tokens.dtype, mx.integer) and tokens.shape == (config.draft_vocab_size,)
    if good:
        inside = (tokens >= 0) & (tokens < config.vocab_size)
        good = bool((mx.all(inside) & mx.all(tokens[1:] > tokens[:-1])).item())
    if not good:
        raise RedrafterError(
            f"{whose} draft_tokens have to be {config.draft_vocab_size} token ids from 0 to "
            f"{config.vocab_size - 1} in ascending order without repeats: make or export it again."
        )
