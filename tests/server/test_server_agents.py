"""Requests as agent programs send them, written after what those were seen to send.

Claude Code 2.1.197, Codex 0.171.0, OpenCode 1.18.33 and llm 0.36 were run against the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Live, ScriptedSequences, serve_scripted, tool_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS

from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.failures import ApiError
from mlx_redrafter.server.protocol.task import Conversation, Task
from mlx_redrafter.server.work.message_order import orders
from mlx_redrafter.server.work.prompts import encode
from mlx_redrafter.text.prompts import encode_prompt

LOOK = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}


@pytest.fixture(scope="module")
def context() -> int:
    return 8192


def events(live: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = httpx.post(live.url + path, json=body)
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# ---- Claude Code


def claude_code(question: str, accounting: str = "cc_version=2.1.197.6b9;") -> dict[str, Any]:
    """What ``claude -p`` sends first: instructions in between, caching marks, betas."""
    kept = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": "tiny",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>\nToday.\n</system-reminder>\n"},
                    {"type": "text", "text": question, **kept},
                ],
            },
            {"role": "system", "content": f"Agents: none. please {question.split()[-1]}"},
        ],
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: {accounting} cc_entrypoint=x;"},
            {"type": "text", "text": "You are an agent.", **kept},
            {"type": "text", "text": "\nYou help with code."},
        ],
        "tools": [{"name": "look", "description": "Look.", "input_schema": LOOK}],
        "metadata": {"user_id": '{"device_id":"0","account_uuid":"","session_id":"1"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }


def test_claude_code_is_answered_and_goes_on(
    live: Live, engine: ScriptedSequences, tokenizer: TokenizerWrapper
) -> None:
    body = claude_code("please call")
    made = events(live, "/v1/messages?beta=true", body)
    assert [event["type"] for event in made if event["type"] != "ping"][-1] == "message_stop"
    use = next(e["content_block"] for e in made if e.get("content_block", {}).get("id"))
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {**use, "input": {"at": "dog"}},
    ]
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "it sleeps"}
    body["messages"] += [
        {"role": "assistant", "content": said},
        {"role": "user", "content": [{**result, "is_error": False}]},
    ]
    made = events(live, "/v1/messages?beta=true", body)
    assert next(e for e in made if e["type"] == "message_delta")["delta"]["stop_reason"]
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert "<think>Hm.</think>Let me look." in prompt
    assert prompt.index("Agents: none.") < prompt.index("it sleeps")


def test_the_line_for_accounting_does_not_part_prefixes(
    live: Live, engine: ScriptedSequences
) -> None:
    for accounting in ("cc_version=2.1.197.6b9;", "cc_version=2.1.197.5f7; cch=1a2b3;"):
        events(live, "/v1/messages?beta=true", claude_code("please say", accounting))
    assert engine.added[-1].prompt == engine.added[-2].prompt
    text = {"messages": claude_code("say")["messages"], "max_tokens": 3, "stream": True}
    events(live, "/v1/messages", {**text, "system": "x-anthropic-billing-header: kept as it is"})
    assert len(engine.added[-1].prompt) < len(engine.added[-2].prompt)


def test_a_schema_for_the_answer_reaches_the_engine(live: Live, engine: ScriptedSequences) -> None:
    body = claude_code("please say")
    body["output_config"]["format"] = {"type": "json_schema", "schema": LOOK}
    events(live, "/v1/messages", body)
    assert engine.added[-1].schema == json.dumps(LOOK)
    assert engine.added[-1].calls


def test_a_thread_is_refused_so_that_whole_conversations_are_sent(live: Live) -> None:
    asked = {"messages": [{"role": "user", "content": "please say"}], "max_tokens": 99}
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        response = httpx.post(f"{live.url}/v1/messages?beta=true", json={**asked, "thread": thread})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["details"]["error_code"] == "thread_unsupported_request"
        assert error["message"].startswith("thread is not supported here")
    assert httpx.post(f"{live.url}/v1/messages", json={**asked, "thread": None}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_tool_runner_gets_its_answer(live: Live, stream: bool) -> None:
    anthropic = pytest.importorskip("anthropic", minversion="2.14")

    @anthropic.beta_tool
    def look(at: str) -> str:
        """Look at something."""
        return f"{at}: please say"

    client = anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)
    asked = [{"role": "user", "content": "please call"}]
    runner = client.beta.messages.tool_runner(
        model="tiny", max_tokens=300, messages=asked, tools=[look], stream=stream
    )
    made = [turn.get_final_message() if stream else turn for turn in runner]
    said = [[(block.type, getattr(block, "text", None)) for block in one.content] for one in made]
    assert said == [
        [("text", "Let me look."), ("tool_use", None)],
        [("text", "The dog does not mind.")],
    ]


def test_a_long_prompt_is_refused_in_the_vendors_own_words(live: Live) -> None:
    body = claude_code("x " * 9000)
    error = httpx.post(f"{live.url}/v1/messages?beta=true", json=body).json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("prompt is too long: ")
    counted = httpx.post(
        f"{live.url}/v1/messages/count_tokens?beta=true",
        json={name: body[name] for name in ("model", "messages", "tools")},
    )
    assert counted.json()["input_tokens"] > 8192


# ---- Codex


def codex(question: str, *more: dict[str, Any]) -> dict[str, Any]:
    """What ``codex exec`` sends: developer messages, tools in namespaces, all it keeps itself."""

    def message(role: str, text: str) -> dict[str, Any]:
        content = [{"type": "input_text", "text": text}]
        return {"type": "message", "id": "msg_1", "role": role, "content": content}

    function = {"type": "function", "name": "look", "strict": False, "parameters": LOOK}
    return {
        "model": "tiny",
        "stream": True,
        "input": [
            message("developer", "You are a coding agent."),
            message("developer", "<skills>none</skills>"),
            message("user", "<environment_context>here</environment_context>"),
            message("user", question),
            *more,
        ],
        "tools": [
            {**function, "name": "glance", "description": "Glance."},
            {
                "type": "namespace",
                "name": "eyes_v1",
                "description": "Eyes.",
                "tools": [{**function, "description": "Look."}],
            },
            {"type": "namespace", "name": "mcp__sight__", "tools": [{**function}]},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0",
        "client_metadata": {"x-codex-window-id": "0:0"},
    }


@pytest.fixture
def seeing(tokenizer: TokenizerWrapper) -> Iterator[tuple[Live, ScriptedSequences]]:
    call = '<think>Hm.</think><tool_call>{"name": "eyes_v1__look", "arguments": {"at": "dog"}}'
    text = f"{call}</tool_call>"
    tokens = list(tokenizer.encode(text, add_special_tokens=False))
    engine = ScriptedSequences(lambda _: tokens, tokenizer.eos_token_id)
    with serve_scripted(tokenizer, engine) as live:
        yield live, engine


@pytest.mark.parametrize("stream", [True, False])
def test_a_function_of_a_namespace_is_called_by_both_names(
    seeing: tuple[Live, ScriptedSequences], tokenizer: TokenizerWrapper, stream: bool
) -> None:
    live, engine = seeing
    body = codex("please see") | {"stream": stream}
    if stream:
        made = events(live, "/v1/responses", body)
        assert made[-1]["type"] == "response.completed"
        done = [e["item"] for e in made if e["type"] == "response.output_item.done"]
        assert done == made[-1]["response"]["output"]
    else:
        done = httpx.post(f"{live.url}/v1/responses", json=body).json()["output"]
    thought, call = done
    assert thought["type"] == "reasoning"
    assert (call["namespace"], call["name"]) == ("eyes_v1", "look")
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert '"eyes_v1__look"' in prompt
    assert '"mcp__sight__look"' in prompt
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "it sleeps"}
    body = codex("please see", thought, call, {**output, "id": "fco_1"})
    httpx.post(f"{live.url}/v1/responses", json=body)
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert prompt.count('"name": "eyes_v1__look"') == 2
    assert prompt.index("<think>Hm.</think>") < prompt.index("it sleeps")


def test_a_function_of_a_namespace_can_be_required(
    seeing: tuple[Live, ScriptedSequences], tokenizer: TokenizerWrapper
) -> None:
    live, engine = seeing
    choice = {"type": "function", "name": "look", "namespace": "eyes_v1"}
    events(live, "/v1/responses", codex("please see") | {"tool_choice": choice})
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert "mcp__sight__" not in prompt
    assert prompt.endswith("<tool_call>")


def test_functions_of_one_name_are_refused(live: Live) -> None:
    body = codex("please see")
    body["tools"].append({"type": "function", "name": "eyes_v1__look"})
    response = httpx.post(f"{live.url}/v1/responses", json=body)
    assert response.status_code == 400
    assert "eyes_v1__look twice" in response.json()["error"]["message"]


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "custom", "name": "patch"}])
def test_tools_of_the_vendors_are_refused(live: Live, tool: dict[str, Any]) -> None:
    body = codex("please see")
    body["tools"].append(tool)
    response = httpx.post(f"{live.url}/v1/responses", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tools.3")


# ---- OpenCode, llm


def test_a_conversation_of_opencodes_is_answered(live: Live) -> None:
    function = {"name": "look", "description": "Look.", "parameters": LOOK}
    call = {"id": "call_1", "type": "function"}
    body: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 32000,
        "messages": [
            {"role": "system", "content": "You are a tool."},
            {"role": "user", "content": '"please look"'},
            {
                "role": "assistant",
                "content": "Let me look.",
                "reasoning_content": "Hm.",
                "tool_calls": [{**call, "function": {"name": "look", "arguments": '{"at":"a"}'}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "it sleeps\n"},
            {"role": "user", "content": "Name this:\n"},
            {"role": "user", "content": "please say"},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    made = events(live, "/v1/chat/completions", body)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in made if c["choices"])
    assert text == ANSWERS["say"]
    assert made[-1]["usage"]["completion_tokens"] > 0


def test_probes_are_answered(live: Live) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/models/tiny"):
        got, headed = httpx.get(live.url + path), httpx.head(live.url + path)
        assert (got.status_code, headed.status_code, headed.content) == (200, 200, b"")
        assert headed.headers["content-length"] == str(len(got.content))


# ---- templates with rules of their own

ALTERNATING = (
    "{% set first = messages[0]['role'] == 'system' %}"
    "{% for m in messages %}{% if m['role'] not in ['system', 'tool'] and not loop.first and "
    "m['role'] == loop.previtem['role'] %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system must be first') }}{% endif %}"
    "{% if m['role'] == 'user' and loop.previtem and loop.previtem['role'] == 'tool' %}"
    "{{ raise_exception('an answer follows a result') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
NO_SYSTEM = ALTERNATING.replace("{% set", "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{% set", 1)  # fmt: skip
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "A"},
    {"role": "system", "content": "B"},
    {"role": "user", "content": "C"},
    {"role": "system", "content": "D"},
    {"role": "user", "content": "E"},
    {"role": "assistant", "content": "F"},
    {"role": "tool", "content": "G"},
    {"role": "user", "content": "H"},
]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (ALTERNATING, "[system]A\n\nB[user]C\n\nD\n\nE[assistant]F[tool]G\n\nH"),
        (NO_SYSTEM, "[user]A\n\nB\n\nC\n\nD\n\nE[assistant]F[tool]G\n\nH"),
        (
            "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
            "[system]A[system]B[user]C[system]D[user]E[assistant]F[tool]G[user]H",
        ),
    ],
)
def test_messages_are_put_as_the_template_takes_them(
    tmp_path: Path, template: str, wanted: str
) -> None:
    tokenizer = tool_tokenizer(tmp_path)
    tokenizer._tokenizer.chat_template = template
    encoded = encode(tokenizer, Task(Conversation([dict(turn) for turn in TURNS])), 10_000)
    assert tokenizer.decode(encoded.ids) == wanted


def test_what_no_order_makes_good_is_told_in_the_templates_words(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path)
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no ' ~ messages | length) }}"
    with pytest.raises(ApiError, match="refused these messages: no 8"):
        encode(tokenizer, Task(Conversation([dict(turn) for turn in TURNS])), 10_000)


def test_every_text_stays_in_its_place() -> None:
    made = list(orders(TURNS))
    assert made[0] == TURNS
    for messages in made:
        assert "".join(str(m["content"]) for m in messages).replace("\n\n", "") == "ABCDEFGH"


# As Llama 3.1's asks for calls.
ONE_CALL = (
    "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('single calls only') }}{% endif %}{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("none", [[], None])
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_an_empty_list_of_calls_is_none_to_the_template(
    tmp_path: Path, role: str, none: Any
) -> None:
    """Some clients keep one in every message."""
    tokenizer = tool_tokenizer(tmp_path)
    tokenizer._tokenizer.chat_template = ONE_CALL
    said = [{"role": role, "content": "It sleeps.", "tool_calls": none}]
    (task,) = parse_chat({"messages": said}).tasks
    assert task.prompt.messages == [{"role": role, "content": "It sleeps."}]
    assert tokenizer.decode(encode(tokenizer, task, 10_000).ids) == "It sleeps."
    assert tokenizer.decode(encode_prompt(tokenizer, said)) == "It sleeps."
