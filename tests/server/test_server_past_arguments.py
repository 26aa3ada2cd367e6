"""Arguments of earlier calls that are no JSON object: the template gets them as they can be read.

Another model may have written them, and no client can take them back.
"""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from live_server import TOOL_TEMPLATE, Live, ScriptedSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.failures import ApiError
from mlx_redrafter.server.protocol.responses_request import parse_responses
from mlx_redrafter.server.work.prompts import encode

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SHOWN = "{{ tool_call.name }}{{ tool_call | tojson }}"
# As Qwen's templates, GLM's and Qwen's for programming write calls.
PRINTED = (
    "{% set call = tool_call.function %}{{ call.name }}:"
    "{% if call.arguments is string %}{{ call.arguments }}"
    "{% else %}{{ call.arguments | tojson }}{% endif %}"
)
LOOKED_UP = (
    "{{ tool_call.function.name }}:"
    "{% for k, v in tool_call.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
)
PAIRED = (
    "{{ tool_call.function.name }}:"
    "{% for k, v in tool_call.function.arguments | items %}{{ k }}={{ v }}{% endfor %}"
)
ODD = [
    "{oops",
    "null",
    "[]",
    "5",
    '"dog"',
    '{"at": NaN}',
    '{"at": 1e999}',
    r'{"at": "\ud83d"}',
    '{"at": ' + "[" * 900 + "]" * 900 + "}",
    '{"at": ' + "[" * 9000 + "]" * 9000 + "}",
]


def chat_with(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "1", "content": "please say"}
    asked = {"role": "user", "content": "please call"}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [asked, said, result]}


def response_with(arguments: str) -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": arguments}
    result = {"type": "function_call_output", "call_id": "1", "output": "please say"}
    return {"input": [{"role": "user", "content": "please call"}, call, result]}


def prompt_of(tokenizer: TokenizerWrapper, arguments: str, written: str) -> str:
    """The prompt by a template that writes arguments so."""
    told = copy.deepcopy(tokenizer)
    told.chat_template = TOOL_TEMPLATE.replace(SHOWN, written)
    assert told.chat_template != TOOL_TEMPLATE
    (task,) = parse_chat(chat_with(arguments)).tasks
    return str(told.decode(encode(told, task, 10_000).ids))


@pytest.mark.parametrize("arguments", ODD[:-1])  # the last is longer than the context
def test_no_later_turn_is_refused(
    live: Live, engine: ScriptedSequences, tokenizer: TokenizerWrapper, arguments: str
) -> None:
    for path, body in ((CHAT, chat_with(arguments)), (RESPONSES, response_with(arguments))):
        made = httpx.post(live.url + path, json=body)
        assert made.status_code == 200, made.text
        assert '"name": "look"' in tokenizer.decode(engine.added[-1].prompt)


@pytest.mark.parametrize("arguments", ODD)
@pytest.mark.parametrize("written", [PRINTED, LOOKED_UP, PAIRED])
def test_every_way_to_write_arguments_takes_them(
    tokenizer: TokenizerWrapper, arguments: str, written: str
) -> None:
    assert "<tool_call>look:" in prompt_of(tokenizer, arguments, written)


@pytest.mark.parametrize("arguments", ["{oops", "null", "[]"])
def test_a_template_that_prints_text_is_given_the_text(
    tokenizer: TokenizerWrapper, arguments: str
) -> None:
    assert f"look:{arguments}</tool_call>" in prompt_of(tokenizer, arguments, PRINTED)


@pytest.mark.parametrize("written", [LOOKED_UP, PAIRED])
@pytest.mark.parametrize("arguments", ["{oops", "null", "[]"])
def test_a_template_that_wants_an_object_is_given_one_that_holds_the_text(
    tokenizer: TokenizerWrapper, arguments: str, written: str
) -> None:
    prompt = prompt_of(tokenizer, arguments, written)
    assert f"look:arguments={arguments}</tool_call>" in prompt


def test_both_apis_give_the_template_the_same() -> None:
    for arguments, read in (("{oops", "{oops"), ("", {}), ('{"at": 1}', {"at": 1})):
        for parsed in (parse_chat(chat_with(arguments)), parse_responses(response_with(arguments))):
            prompt: Any = parsed.tasks[0].prompt
            (call,) = prompt.messages[1]["tool_calls"]
            assert call["function"]["arguments"] == read


def test_what_a_template_refuses_besides_is_told(tokenizer: TokenizerWrapper) -> None:
    told = copy.deepcopy(tokenizer)
    refusing = LOOKED_UP + "{{ raise_exception('no calls, please') }}"
    told.chat_template = TOOL_TEMPLATE.replace(SHOWN, refusing)
    (task,) = parse_chat(chat_with("{oops")).tasks
    with pytest.raises(ApiError, match="no calls, please"):
        encode(told, task, 10_000)
