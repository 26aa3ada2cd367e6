"""The text of a single token."""

from __future__ import annotations

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from sentencepieces import sentencepiece_tokenizer
from tokenizers import decoders

from mlx_redrafter.engine.step import DecodedToken
from mlx_redrafter.text.responses import ResponseWriter
from mlx_redrafter.text.tokenizers import token_text, wrapped
from mlx_redrafter.ui.chat.views import token_name

# Pieces of SentencePiece's, and what each is in the middle of a text.
TEXTS = {
    "\u2581the": " the",
    "the": "the",
    "\u2581": " ",
    "\u2581\u2581\u2581": "   ",
    "\u2581\u2581a": "  a",
    "a\u2581": "a ",
    "<0x0A>": "\n",
    ".": ".",
}


def test_a_word_keeps_the_space_that_it_begins_with() -> None:
    tokenizer = sentencepiece_tokenizer(list(TEXTS))
    ids = tokenizer.convert_tokens_to_ids(list(TEXTS))
    assert [token_text(tokenizer, token) for token in ids] == list(TEXTS.values())
    assert tokenizer.decode(ids[:1]) == "the", "what is left out"
    assert [token_name(tokenizer, token) for token in ids[:3]] == ["␣the", "the", "␣"]


@pytest.mark.parametrize("text", [" dog", "dog", " ", "\n", "  the"])
def test_tokens_of_byte_level_vocabularies_are_as_they_are(
    tokenizer: TokenizerWrapper, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(token_text(tokenizer, token) for token in ids) == text
    assert token_text(tokenizer, len(tokenizer) + 3) == ""


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("text", ["\u2248\N{BRAIN}", "\N{BRAIN}\u2248 a\N{BRAIN}", " a \u2248"])
def test_bytes_of_characters_in_a_row_are_said_once(trims: bool, text: str) -> None:
    """Of transformers' tokenizers; the bytes of one character may be broken into by the next."""
    pieces = ["\u2581", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = sentencepiece_tokenizer(pieces)._tokenizer
    if not trims:
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        plain.backend_tokenizer.decoder = decoders.Sequence(parts)
    names = {" ": ["\u2581"], "a": ["a"]}
    entries = [
        piece
        for character in text
        for piece in names.get(character, [f"<0x{byte:02X}>" for byte in character.encode()])
    ]
    writer = ResponseWriter(wrapped(plain), 1)
    said = ""
    for place, token in enumerate(plain.convert_tokens_to_ids(entries), start=1):
        reason = "length" if place == len(entries) else None
        said += writer.add(DecodedToken(token, "own", reason, None)).text
    assert said == (text.removeprefix(" ") if trims else text)
