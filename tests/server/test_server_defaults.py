"""What the server decides where a request says nothing."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from live_server import TOOL_TEMPLATE, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.messages_request import parse_messages
from mlx_redrafter.server.settings import ANSWER_TOKENS, CONTINUATION_TOKENS, ServerSettings
from mlx_redrafter.server.work.prompts import encode

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "please say"}]}


@pytest.mark.parametrize(
    ("given", "chat", "completion"), [(None, ANSWER_TOKENS, CONTINUATION_TOKENS), (7, 7, 7)]
)
def test_the_longest_answer_of_the_server_holds_for_every_api(
    tokenizer: TokenizerWrapper, given: int | None, chat: int, completion: int
) -> None:
    engine = script(tokenizer)
    settings = ServerSettings(max_tokens=given)
    with serve_scripted(tokenizer, engine, settings, context=None) as live:
        for path, body, most in (
            (CHAT, ASK, chat),
            ("/v1/completions", {"prompt": "a"}, completion),
            ("/v1/responses", {"input": "please say"}, chat),
            ("/v1/completions", {"prompt": "a", "max_tokens": 9}, 9),
        ):
            assert httpx.post(live.url + path, json=body).status_code == 200
            assert engine.added[-1].max_tokens == most, path


def test_the_server_has_arguments_for_the_template_where_a_request_has_none(
    tokenizer: TokenizerWrapper,
) -> None:
    told = copy.deepcopy(tokenizer)
    told.chat_template = "[{{ enable_thinking }} {{ tone }}]" + TOOL_TEMPLATE
    engine = script(told)
    defaults = {"enable_thinking": False, "tone": "dry"}
    with serve_scripted(told, engine, ServerSettings(template=defaults)) as live:
        for more, begun in (
            ({}, "[False dry]"),
            ({"chat_template_kwargs": {"enable_thinking": True}}, "[True dry]"),
            ({"chat_template_kwargs": {"tone": "warm"}}, "[False warm]"),
        ):
            assert httpx.post(live.url + CHAT, json=ASK | more).status_code == 200
            assert told.decode(engine.added[-1].prompt).startswith(begun)


LOOK = {"name": "look", "input_schema": {"type": "object"}}
MUST = {"tools": [LOOK], "tool_choice": {"type": "any"}}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
OFF = {"thinking": {"type": "disabled"}}


@pytest.mark.parametrize(
    ("server", "more", "thinks"),
    [
        ({}, {}, False),
        ({"enable_thinking": True}, {}, True),
        ({"enable_thinking": True}, {"thinking": None}, True),
        ({"enable_thinking": True}, OFF, False),
        ({"enable_thinking": False}, THINK, True),
        ({}, THINK, True),
        ({"enable_thinking": True}, MUST, False),
        ({}, THINK | MUST, False),
    ],
)
def test_messages_think_as_they_say_or_the_server_does(
    tokenizer: TokenizerWrapper, server: dict[str, bool], more: dict[str, Any], thinks: bool
) -> None:
    told = copy.deepcopy(tokenizer)
    told.chat_template = "[{{ enable_thinking }}]" + TOOL_TEMPLATE
    (task,) = parse_messages(ASK | {"max_tokens": 9} | more).tasks
    encoded = encode(told, task, 10_000, server)
    assert told.decode(encoded.ids).startswith(f"[{thinks}]")


def test_a_call_that_is_required_begins_without_thoughts(tokenizer: TokenizerWrapper) -> None:
    switch = "{% if enable_thinking %}<think>{% endif %}"
    function = {"type": "function", "function": {"name": "look"}}
    body = {"tools": [function], "tool_choice": "required"}
    body["chat_template_kwargs"] = {"enable_thinking": True}
    for opening, begun in ((switch, ""), ("<think>", "<think>\n</think>\n\n")):
        told = copy.deepcopy(tokenizer)
        told.chat_template = TOOL_TEMPLATE.replace("<|assistant|>", f"<|assistant|>{opening}")
        (task,) = parse_chat(ASK | body).tasks
        encoded = encode(told, task, 10_000)
        assert told.decode(encoded.ids).endswith(f"<|assistant|>{begun}<tool_call>")
        assert encoded.initial == "tool"
