"""Ids of tool calls, before templates that take only those of one form, as Mistral's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Live, tool_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS

from mlx_redrafter.server.protocol.task import Conversation, Task
from mlx_redrafter.server.work.call_ids import with_short_ids
from mlx_redrafter.server.work.prompts import encode

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ASK: dict[str, Any] = {"role": "user", "content": "please call"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
WRONG = "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
CHECKED = (
    "{% if tools %}<|system|>Call with <tool_call>...</tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must be first') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for tool_call in m.tool_calls or [] %}<tool_call>{{ tool_call.name }}"
    "{% if tool_call.id is not defined or tool_call.id | length != 9 %}" + WRONG + "{% endif %}"
    "{{ tool_call.id }}</tool_call>{% endfor %}{% if m['role'] == 'tool' %}"
    "{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}" + WRONG + "{% endif %}"
    "={{ m.tool_call_id }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    made = tool_tokenizer(tmp_path_factory.mktemp("strict"))
    made._tokenizer.chat_template = CHECKED
    return made


def post(live: Live, path: str, **body: Any) -> Any:
    response = httpx.post(live.url + path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_id_of_ours_is_one_that_the_template_takes(live: Live) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    message = post(live, CHAT, messages=[ASK], tools=tools)["choices"][0]["message"]
    name = message["tool_calls"][0]["id"]
    assert len(name) == 9
    assert name.isascii()
    assert name.isalnum()


def test_results_of_calls_go_back_by_chat_completions(live: Live) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    function = {"name": "look", "arguments": "{}"}
    calls = [{"id": "call_0123456789", "type": "function", "function": function}]
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "please say"},
    ]
    made = post(live, CHAT, messages=messages, tools=tools)
    assert made["choices"][0]["message"]["content"] == ANSWERS["say"]


def test_results_of_calls_go_back_by_messages(live: Live) -> None:
    use = {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835lq9", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "please say"}
    messages = [ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    made = post(
        live,
        MESSAGES,
        messages=messages,
        max_tokens=99,
        tools=[{"name": "look", "input_schema": SCHEMA}],
    )
    assert made["content"][0]["text"] == ANSWERS["say"]


def test_results_of_calls_go_back_by_responses(live: Live) -> None:
    call = {"type": "function_call", "call_id": "call_x", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_x", "output": "please say"}
    made = post(
        live,
        RESPONSES,
        input=[ASK, call, output],
        tools=[{"type": "function", "name": "look", "parameters": SCHEMA}],
    )
    assert made["output"][0]["content"][0]["text"] == ANSWERS["say"]


def turns(*ids: str | None) -> list[dict[str, Any]]:
    """A conversation whose calls, and then their results, have these ids."""
    function = {"name": "look", "arguments": {}}
    half = len(ids) // 2
    calls = [{"type": "function", "function": function, "id": name} for name in ids[:half]]
    results = [{"role": "tool", "content": "r", "tool_call_id": name} for name in ids[half:]]
    for named in (*calls, *results):
        if (named.get("id"), named.get("tool_call_id")) == (None, None):
            named.pop("id", None)
            named.pop("tool_call_id", None)
    return [ASK, {"role": "assistant", "content": "", "tool_calls": calls}, *results]


@pytest.mark.parametrize(
    "ids",
    [
        ("toolu_1", "toolu_2", "toolu_2", "toolu_1"),
        ("abcdefgh1", "call_1", "call_1", "abcdefgh1"),
        ("a", "b", "a", None),
        ("a", "b", None, "a"),
        ("a", "b", None, None),
        (None, None, None, None),
    ],
)
def test_calls_and_results_stay_together(ids: tuple[str | None, ...]) -> None:
    made = with_short_ids(turns(*ids))
    called = [call["id"] for call in made[1]["tool_calls"]]
    answered = [message["tool_call_id"] for message in made[2:]]
    assert all(len(name) == 9 and name.isalnum() for name in called)
    assert len(set(called)) == 2
    wanted = [called[ids[:2].index(name)] if name else None for name in ids[2:]]
    for name, want in zip(answered, wanted, strict=True):
        assert want is None or name == want
    assert None in ids[2:3] or sorted(answered) == sorted(called)
    assert [call.get("id") for call in turns(*ids)[1]["tool_calls"]] == list(ids[:2])


def test_what_has_the_form_keeps_its_id() -> None:
    conversation = turns("abcdefgh1", "ABC123xyz", "ABC123xyz", "abcdefgh1")
    assert with_short_ids(conversation) == conversation


@pytest.mark.parametrize("later", [False, True])
def test_instructions_keep_their_place_where_only_ids_are_wrong(
    tokenizer: TokenizerWrapper, later: bool
) -> None:
    messages = [{"role": "system", "content": "A"}, *turns("a", "a")]
    messages += [{"role": "system", "content": "B"}] if later else []
    encoded = encode(tokenizer, Task(Conversation(messages)), 10_000)
    text = tokenizer.decode(encoded.ids)
    assert text.startswith("<|system|>A<|end|>")
    assert text.partition("r=")[2].partition("<|assistant|>")[0][9:] == (
        "<|end|><|user|>B<|end|>" if later else "<|end|>"
    )


def test_other_templates_see_the_ids_as_they_came(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path)
    encoded = encode(tokenizer, Task(Conversation(turns("functions.look:0", "x"))), 10_000)
    assert "functions.look:0" in tokenizer.decode(encoded.ids)
