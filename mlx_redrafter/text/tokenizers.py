"""Tokenizers of transformers' as mlx-lm's."""

from __future__ import annotations

from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError


def wrapped(tokenizer: Any) -> TokenizerWrapper:
    """A tokenizer of transformers' as mlx-lm's; mlx-lm's own as it is.

    Raises:
        RedrafterError: If it is none.
    """
    if isinstance(tokenizer, TokenizerWrapper):
        return tokenizer
    if not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode")):
        raise RedrafterError(
            "The tokenizer has to be the one from mlx_redrafter.load, or one of transformers', and "
            f"is a {type(tokenizer).__name__}."
        )
    return TokenizerWrapper(tokenizer)
