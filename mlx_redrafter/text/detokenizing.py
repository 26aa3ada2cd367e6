"""Token ids as text, those beyond the tokenizer's vocabulary and in its holes included."""

from __future__ import annotations

from typing import Any


def add_token(detokenizer: Any, token: int) -> None:
    """Add a token to a streaming detokenizer of mlx-lm's, unless it is none of the vocabulary's.

    Embeddings are often padded to a round number of rows, vocabularies have ids that are no one's,
    and a model may choose one of those; no text stands for it. Detokenizers that look texts up
    raise errors over such ids, or make up a text; others ask their tokenizer, which knows.
    """
    texts = getattr(detokenizer, "tokenmap", None)
    if texts is None or (token < len(texts) and texts[token] is not None):
        detokenizer.add_token(token)


def complete_texts(tokenizer: Any) -> None:
    """Let a tokenizer's detokenizers know all of a vocabulary with holes.

    They look up as many ids as there are tokens: for each hole the text of a last one is missing.
    """
    texts = getattr(tokenizer.detokenizer, "tokenmap", None)
    if texts is not None and None in texts:
        last = max(tokenizer.get_vocab().values())
        texts += tokenizer.convert_ids_to_tokens(list(range(len(texts), last + 1)))
