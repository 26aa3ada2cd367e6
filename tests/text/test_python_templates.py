"""Chat templates that are functions of Python's, which mlx-lm has for some checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.chat_templates import deepseek_v32
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.responses_request import parse_responses
from mlx_redrafter.server.work.prompts import encode
from mlx_redrafter.text.prompts import encode_prompt
from mlx_redrafter.training.data import tokenize

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "what does this do?"}]


@pytest.fixture
def deepseek(tokenizer: TokenizerWrapper) -> TokenizerWrapper:
    return TokenizerWrapper(tokenizer._tokenizer, chat_template=deepseek_v32.apply_chat_template)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: parse_chat({"messages": ASKED, "reasoning_effort": "low"}),
        lambda: parse_responses({"input": ASKED, "reasoning": {"effort": "medium"}}),
    ],
)
def test_an_effort_that_a_renderer_does_not_know_changes_nothing(
    deepseek: TokenizerWrapper, request_of: Any
) -> None:
    (task,) = request_of().tasks
    plain = encode_prompt(deepseek, ASKED)
    assert encode(deepseek, task, 10**6).ids == plain
    spoken = encode_prompt(deepseek, ASKED, template_args={"enable_thinking": True})
    assert spoken != plain, "what it knows still reaches it"


def test_conversations_for_training_are_rendered(deepseek: TokenizerWrapper) -> None:
    answer = {"role": "assistant", "content": "the sum"}
    (row,) = tokenize([{"messages": [*ASKED, answer]}], deepseek)
    assert deepseek.decode(row.tokens[row.answer].tolist()).startswith("the sum")


def test_tools_that_a_renderer_does_not_know_are_not_left_out(tokenizer: TokenizerWrapper) -> None:
    """The model would not hear of them, and nobody of that."""

    def renderer(messages: Any, add_generation_prompt: bool, enable_thinking: bool) -> str:
        return str(messages)

    own = TokenizerWrapper(tokenizer._tokenizer, chat_template=renderer)
    assert encode_prompt(own, ASKED, template_args={"tone": "loud"})
    with pytest.raises(RedrafterError, match="unexpected keyword argument 'tools'"):
        encode_prompt(own, ASKED, tools=[{"type": "function"}])
