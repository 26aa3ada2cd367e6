"""What is refused names the field that is wrong, as the client wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import Live, serve_scripted, tool_tokenizer
from scripted_answers import script

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    tokenizer = tool_tokenizer(tmp_path_factory.mktemp("refusals"))
    with serve_scripted(tokenizer, script(tokenizer)) as live:
        yield live


def refused(live: Live, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(live.url + path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# ---- arguments of calls that come back


def chat_with(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    asked = {"role": "user", "content": "please call"}
    return {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def response_with(arguments: str) -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": arguments}
    return {"input": [{"role": "user", "content": "please call"}, call]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (r'{"at": "\ud83d"}', "half of a surrogate pair"),
        ('{"at": NaN}', "NaN is not a number"),
        ('{"at": 1e999}', "too large"),
        ('{"at": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"at": ' + "[" * 9000 + "]" * 9000 + "}", "nested too deeply"),
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_arguments_that_are_no_good_json_are_refused_by_name(
    live: Live, arguments: str, words: str
) -> None:
    error = refused(live, CHAT, chat_with(arguments))
    assert words in error["message"]
    assert error["param"].startswith("messages.1.tool_calls.0.function.arguments")
    error = refused(live, RESPONSES, response_with(arguments))
    assert words in error["message"]
    assert error["param"].startswith("input.1.arguments")
