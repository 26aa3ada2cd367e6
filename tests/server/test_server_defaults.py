"""What the server decides where a request says nothing."""

from __future__ import annotations

import copy

import httpx
import pytest
from live_server import TOOL_TEMPLATE, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server.settings import ANSWER_TOKENS, CONTINUATION_TOKENS, ServerSettings

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
