"""The text of a single token."""

from __future__ import annotations

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from sentencepieces import sentencepiece_tokenizer

from mlx_redrafter.text.tokenizers import token_text
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
