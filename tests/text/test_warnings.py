"""Warnings name the caller's own line, whichever function was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

import models
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.text.batch_generate import batch_generate, stream_batch_generate
from mlx_redrafter.text.generate import generate, stream_generate

PROMPT = models.prompt_of(7)


def _read(made: Any) -> None:
    if isinstance(made, Iterator):
        list(made)


@pytest.mark.parametrize(
    ("call", "prompt"),
    [
        (stream_generate, PROMPT),
        (generate, PROMPT),
        (batch_generate, [PROMPT]),
        (stream_batch_generate, [PROMPT]),
    ],
)
def test_a_warning_names_the_line_that_called(
    call: Callable[..., Any], prompt: Any, tokenizer: TokenizerWrapper
) -> None:
    model = SpeculativeModel(models.shared("llama"), models.build_drafter())
    with pytest.warns(UserWarning, match="decoded plainly") as warned:
        _read(call(model, tokenizer, prompt, max_tokens=2, sampler=make_sampler(0.0)))
    assert {one.filename for one in warned} == {__file__}
