"""A tokenizer of the kind of SentencePiece's, as Llama 2 and Mistral have it."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

UNKNOWN, END = "<unk>", "</s>"


def sentencepiece_tokenizer(pieces: Sequence[str]) -> TokenizerWrapper:
    """One with these pieces; what is decoded loses the space that it begins with."""
    vocabulary = {piece: number for number, piece in enumerate([UNKNOWN, END, *pieces])}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END)
    return TokenizerWrapper(fast, SPMStreamingDetokenizer)
