"""Ids that no text stands for, and vocabularies with holes."""

from __future__ import annotations

from pathlib import Path

import bundles
import pytest
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_redrafter import load
from mlx_redrafter.text.detokenizing import add_token, complete_texts

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
HOLE = len(LETTERS)
END, WORD = HOLE + 2, HOLE + 3


def with_hole() -> PreTrainedTokenizerFast:
    """A tokenizer of which two ids are no one's, so that its last ones are beyond its size."""
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    vocabulary |= {"<eos>": END, "ab": WORD}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def text_of(tokenizer: TokenizerWrapper, tokens: list[int]) -> str:
    detokenizer, text = tokenizer.detokenizer, ""
    for token in tokens:
        add_token(detokenizer, token)
        text += detokenizer.last_segment
    detokenizer.finalize()
    return text + str(detokenizer.last_segment)


@pytest.mark.parametrize("strange", [HOLE, HOLE + 1, WORD + 1, 10**6])
def test_ids_that_are_no_tokens_are_no_text(strange: int) -> None:
    tokenizer = TokenizerWrapper(with_hole(), BPEStreamingDetokenizer)
    letter = LETTERS.index("a")
    assert text_of(tokenizer, [letter, strange, letter]) == "aa"


def test_tokens_beyond_the_size_of_a_vocabulary_with_holes_are_text() -> None:
    tokenizer = TokenizerWrapper(with_hole(), BPEStreamingDetokenizer)
    complete_texts(tokenizer)
    assert len(tokenizer) == WORD - 1
    assert text_of(tokenizer, [WORD, HOLE, LETTERS.index("b"), WORD]) == "abbab"


def test_a_loaded_tokenizer_knows_all_of_its_texts(tmp_path: Path) -> None:
    bundles.make_bundle(tmp_path, drafter=False)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with_hole().save_pretrained(str(tmp_path))
    _, tokenizer = load(tmp_path, plan=False)
    assert text_of(tokenizer, [WORD, HOLE, WORD]) == "abab"
