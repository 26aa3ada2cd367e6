"""Tokenizers of transformers' as mlx-lm's."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from mlx_lm.tokenizer_utils import (
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
    _is_spm_decoder,
    _is_spm_decoder_no_space,
)

from ..errors import RedrafterError

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # as SentencePiece's vocabularies write it


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
    return TokenizerWrapper(tokenizer, _detokenizer(tokenizer))


def _detokenizer(tokenizer: Any) -> Any:
    """What makes the detokenizer, chosen by the decoder as mlx-lm does when it loads one.

    The one for any tokenizer takes characters back, and says them twice, where a decoder finds that
    a run of bytes is no text yet, as SentencePiece's do.
    """
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    described = None if decoder is None else json.loads(decoder.__getstate__())
    trims = _is_spm_decoder(described)
    if not trims and not _is_spm_decoder_no_space(described):
        return NaiveStreamingDetokenizer
    if max(tokenizer.get_vocab().values()) >= len(tokenizer):  # it would have to know the holes
        return NaiveStreamingDetokenizer
    return partial(SPMStreamingDetokenizer, trim_space=trims)


def token_text(tokenizer: Any, token: int) -> str:
    """A token's text as it stands within a longer one.

    By itself decoders of the kind of SentencePiece's leave out the space that it begins with, since
    a text begins with one.
    """
    text = str(tokenizer.decode([token]))
    entry = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(entry, str):
        return text
    spaces = len(entry) - len(entry.lstrip(_SPACE))
    return " " * max(0, spaces - (len(text) - len(text.lstrip(" ")))) + text
