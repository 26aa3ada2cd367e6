"""Token ids as text, those beyond the tokenizer's vocabulary included."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def add_token(detokenizer: Any, token: int) -> None:
    """Add a token to a streaming detokenizer of mlx-lm's.

    Embeddings are often padded to a round number of rows, and a model may choose one of those; no
    text stands for it.
    """
    with suppress(IndexError, KeyError):
        detokenizer.add_token(token)
