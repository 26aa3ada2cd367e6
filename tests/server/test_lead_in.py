"""Texts that go on from token ids which end within a character."""

from __future__ import annotations

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.server.protocol.answer import Text
from mlx_redrafter.server.work.answering import Answering, Job
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.sequences import Decoding, NewToken


def continued(tokenizer: TokenizerWrapper, prompt: list[int], rest: list[int]) -> str:
    """What is said of the rest of a text's tokens."""
    job = Job(0, Encoded(prompt, continues=True), Decoding(prompt, len(rest), {}))
    answering = Answering(job, tokenizer, dict)
    said = ""
    for place, token in enumerate(rest, start=1):
        reason = "length" if place == len(rest) else None
        events = answering.token(NewToken(0, token, "own", reason))
        said += "".join(event.text for event in events if isinstance(event, Text))
    return said


@pytest.mark.parametrize("naive", [False, True])
def test_a_character_that_the_answer_completes_is_the_answers(
    tokenizer: TokenizerWrapper, naive: bool
) -> None:
    tokenizer = TokenizerWrapper(tokenizer._tokenizer) if naive else tokenizer
    dog = "\N{CJK UNIFIED IDEOGRAPH-72AC}"
    before, within, behind = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("The", dog, " barks")
    )
    assert len(within) == 3
    for cut in (1, 2):
        prompt = [*before, *within[:cut]]
        assert continued(tokenizer, prompt, [*within[cut:], *behind]) == f"{dog} barks"
    assert continued(tokenizer, [*before, *within], behind) == " barks"


def test_a_sign_for_what_could_not_be_read_is_a_character_itself(
    tokenizer: TokenizerWrapper,
) -> None:
    sign = tokenizer.encode("The \N{REPLACEMENT CHARACTER}", add_special_tokens=False)
    behind = tokenizer.encode(" dog", add_special_tokens=False)
    assert continued(tokenizer, sign, behind) == " dog"
