"""Conversations that go on from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.text.batch_generate import batch_generate
from mlx_redrafter.text.generate import generate, stream_generate

FIRST = [{"role": "user", "content": "the dog"}]


def loaded_anew(tokenizer: TokenizerWrapper, head: str) -> SpeculativeModel:
    """A model as each process has it, with one of two kinds of heads over all tokens."""
    size = len(tokenizer.get_vocab())
    model = models.build("llama:sliding", vocab_size=size)
    if head == "recurrent":
        return SpeculativeModel(model, models.build_drafter(vocab_size=size))
    return SpeculativeModel(model, models.memory_drafter(vocab_size=size))


@pytest.mark.parametrize("head", ["recurrent", "memory"])
@pytest.mark.parametrize("draft", [False, True])
def test_a_conversation_goes_on_from_a_file(
    head: str, draft: bool, tokenizer: TokenizerWrapper, tmp_path: Path
) -> None:
    model = loaded_anew(tokenizer, head)
    cache = model.make_cache()
    options: dict[str, Any] = {"max_tokens": 12, "draft": draft}
    first = list(stream_generate(model, tokenizer, FIRST, cache=cache, **options))
    cache.save(tmp_path / "talk")
    spoken = "".join(response.text for response in first)
    turns = [*FIRST, {"role": "assistant", "content": spoken}, {"role": "user", "content": "more"}]
    other = loaded_anew(tokenizer, head)
    cold = generate(other, tokenizer, turns, max_tokens=12, draft=False)
    loaded = other.load_cache(tmp_path / "talk")
    told: list[tuple[int, int]] = []
    for going_on in (loaded.copy(), loaded):
        text = generate(
            other,
            tokenizer,
            turns,
            cache=going_on,
            prompt_progress_callback=lambda *done: told.append(done),
            **options,
        )
        assert text == cold
        assert told[0][0] >= len(tokenizer.apply_chat_template(FIRST)) > 0
        told.clear()


def test_texts_of_a_batch_do_not_see_a_loaded_cache(
    tokenizer: TokenizerWrapper, tmp_path: Path
) -> None:
    model = loaded_anew(tokenizer, "recurrent")
    prompts = ["the dog", "a cat"]
    before = batch_generate(model, tokenizer, prompts, max_tokens=8)
    cache = model.make_cache()
    generate(model, tokenizer, prompts[0], cache=cache, max_tokens=8)
    cache.save(tmp_path / "talk")
    loaded = model.load_cache(tmp_path / "talk")
    held = list(loaded.tokens)
    after = batch_generate(model, tokenizer, prompts, max_tokens=8)
    assert after.token_ids == before.token_ids
    assert loaded.tokens == held == cache.tokens
