"""What is refused names the field that is wrong, as the client wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bundles import make_tokenizer
from live_server import Live, serve_scripted
from mlx_lm.tokenizer_utils import load as load_tokenizer
from scripted_answers import script

from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.field_errors import MOST_TOLD
from mlx_redrafter.server.protocol.task import Conversation

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


def refused(live: Live, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(live.url + path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("tokens", [4096, 4097])
def test_a_prompt_without_room_for_an_answer_is_beyond_the_maximum_that_is_named(
    live: Live, tokens: int
) -> None:
    fits = {"prompt": [5] * 4095, "max_tokens": 1}
    assert httpx.post(live.url + COMPLETIONS, json=fits).status_code == 200
    told = refused(live, COMPLETIONS, {"prompt": [5] * tokens})["message"]
    assert told.startswith(f"prompt is too long: {tokens} tokens > 4095 maximum. ")
    assert "context length is 4096 tokens, answer included" in told


# ---- calls that come back


def chat_with_call() -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asked = {"role": "user", "content": "please call"}
    return {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def response_with_call() -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    return {"input": [{"role": "user", "content": "please call"}, call]}


CALLS: list[Any] = ["abc", 5, [{}], [{"function": {"arguments": 5}}], {"a": 1}]


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
@pytest.mark.parametrize("calls", CALLS)
def test_only_the_assistant_calls(live: Live, role: str, calls: Any) -> None:
    message = {"role": role, "content": "please say", "tool_calls": calls}
    error = refused(live, CHAT, {"messages": [message]})
    assert error["param"] == "messages.0.tool_calls"
    assert "Only messages of the assistant's" in error["message"]
    message["tool_calls"] = []
    assert httpx.post(live.url + CHAT, json={"messages": [message]}).status_code == 200


@pytest.mark.parametrize("name", ["self", "tokenizer", "conversation", "conversations"])
def test_what_is_no_argument_of_a_template_is_refused_by_name(live: Live, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "say"}], "chat_template_kwargs": {name: "x"}}
    error = refused(live, CHAT, body)
    assert error["param"] == f"chat_template_kwargs.{name}"


# ---- fields of several types


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 9, **more}


def assistant(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": content}], "max_tokens": 9}


IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [IMAGE]}
TEXTS = "'text' and 'refusal' are"
INPUT_TEXTS = "'input_text', 'output_text', 'text' and 'refusal' are"
ITEMS = "'function_call', 'function_call_output', 'reasoning' and 'message' are"
NOT_HERE = "is not supported here: leave it out."
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (
        CHAT,
        user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]),
        "messages.0.content.1.type",
        f"'image_url' is not supported here, only {TEXTS}.",
    ),
    (CHAT, user([{"text": "a"}]), "messages.0.content.0.type", "is missing."),
    (CHAT, user([{"type": "text"}]), "messages.0.content.0.text", "is missing."),
    (
        CHAT,
        user([{"type": "text", "text": 5}]),
        "messages.0.content.0.text",
        "input should be a valid string.",
    ),
    (CHAT, user(5), "messages.0.content", "input should be a valid string, or a valid list."),
    (CHAT, user(["a"]), "messages.0.content.0", "input should be an object."),
    (CHAT, user("a", stop=["", ""]), "stop.0", "string should have at least 1 character."),
    (CHAT, user("a", stop=["x"] * 65), "stop", "list should have at most 64 items, not 65."),
    (
        CHAT,
        user("a", tool_choice="sometimes"),
        "tool_choice",
        "input should be 'none', 'auto' or 'required', or an object.",
    ),
    (CHAT, user("a", tool_choice={"type": "function"}), "tool_choice.function", "is missing."),
    (
        CHAT,
        {"messages": [{"role": "critic", "content": "a"}]},
        "messages.0.role",
        "'critic' is not supported here, only 'system', 'developer', 'user', 'assistant' and "
        "'tool' are.",
    ),
    *(
        (COMPLETIONS, {"prompt": "a", name: value}, name, NOT_HERE)
        for name, value in (("echo", True), ("suffix", "b"), ("best_of", 2))
    ),
    (RESPONSES, {"input": "a", "background": True}, "background", NOT_HERE),
    (COMPLETIONS, {"prompt": []}, "prompt", "list should have at least 1 item, not 0."),
    (COMPLETIONS, {"prompt": ["a"] * 65}, "prompt", "list should have at most 64 items, not 65."),
    (COMPLETIONS, {"prompt": [1, -2]}, "prompt.1", "input should be greater than or equal to 0."),
    (
        MESSAGES,
        user([IMAGE]),
        "messages.0.content.0.type",
        "'image' is not supported here, only 'text' and 'tool_result' are.",
    ),
    (
        MESSAGES,
        user([{"type": "document", "source": {}}]),
        "messages.0.content.0.type",
        "'document' is not supported here, only 'text' and 'tool_result' are.",
    ),
    (
        MESSAGES,
        user([RESULT]),
        "messages.0.content.0.content.0.type",
        "'image' is not supported here, only 'text' is.",
    ),
    (
        MESSAGES,
        assistant([{"type": "redacted_thinking", "data": "x"}]),
        "messages.0.content.0.type",
        "'redacted_thinking' is not supported here, only 'text', 'thinking' and 'tool_use' are.",
    ),
    (MESSAGES, user("a", tool_choice="auto"), "tool_choice", "input should be an object."),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type",
        f"'input_image' is not supported here, only {INPUT_TEXTS}.",
    ),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        "input.0.content.0.type",
        f"'input_file' is not supported here, only {INPUT_TEXTS}.",
    ),
    (
        RESPONSES,
        {"input": [{"type": "item_reference", "id": "x"}]},
        "input.0.type",
        "'item_reference' is not supported here, since nothing is stored: send the item itself, as "
        "most clients do with store set to false.",
    ),
    (
        RESPONSES,
        {"input": [{"type": "web_search_call", "id": "x"}]},
        "input.0.type",
        f"'web_search_call' is not supported here, only {ITEMS}.",
    ),
    (RESPONSES, {"input": [{"role": "user"}]}, "input.0.content", "is missing."),
    (
        CHAT,
        user("a", logit_bias={"the": 1}),
        "logit_bias.the",
        "the name has to be the id of a token, in digits.",
    ),
    (RESPONSES, {"input": []}, "input", "list should have at least 1 item, not 0."),
    (
        # A field that is called like one of pydantic's types.
        RESPONSES,
        {"input": "a", "tools": [{"type": "function", "function": {"name": "look"}}]},
        "tools.0.name",
        "is missing.",
    ),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), WRONG)
def test_what_is_wrong_is_named_as_the_client_wrote_it(
    live: Live, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    error = refused(live, path, body)
    between = " " if words in ("is missing.", NOT_HERE) else ": "
    assert error["message"] == f"{param}{between}{words}"
    assert error.get("param", param) == param


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [1] * (MOST_TOLD + 1)},
        user("please say") | {f"f{place}": 1 for place in range(MOST_TOLD + 1)},
    ],
)
def test_faults_beyond_number_are_not_written_down(live: Live, body: dict[str, Any]) -> None:
    """Pydantic writes all of them down at once, and nothing else goes on meanwhile."""
    error = refused(live, CHAT, body)
    assert error["message"].startswith(f"The body has more than {MOST_TOLD} faults")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 2**64}, "seed: the number is too large."),
        ({"logit_bias": {"5": 10**20}}, "logit_bias.5: the number is too large."),
        (
            {"stop": ["\udfff"]},
            "stop.0: the text holds half of a surrogate pair, which is no character.",
        ),
    ],
)
def test_what_no_json_may_hold_is_named(live: Live, fields: dict[str, Any], message: str) -> None:
    raw = json.dumps(user("please say") | fields)
    headers = {"Content-Type": "application/json"}
    for path in (CHAT, "/v1/messages"):
        error = httpx.post(live.url + path, content=raw, headers=headers).json()["error"]
        assert error["message"] == message


# ---- calls for a model that has no format for them


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A model without tools."""
    directory = tmp_path_factory.mktemp("plain")
    make_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    assert not tokenizer.has_tool_calling
    with serve_scripted(tokenizer, script(tokenizer)) as live:
        yield live


def message_with_call() -> dict[str, Any]:
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    said = [{"type": "text", "text": "Wait."}, use]
    result = {"type": "tool_result", "tool_use_id": "1", "content": "it sleeps"}
    turns = [("user", "please call"), ("assistant", said), ("user", [result])]
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "max_tokens": 9,
    }


CALLED = [
    (CHAT, chat_with_call(), "messages.1.tool_calls"),
    (MESSAGES, message_with_call(), "messages.1.content.1"),
    (RESPONSES, response_with_call(), "input.1"),
]


@pytest.mark.parametrize(("path", "body", "param"), CALLED)
def test_past_calls_are_not_left_out_silently(
    live: Live, plain: Live, path: str, body: dict[str, Any], param: str
) -> None:
    error = refused(plain, path, body)
    assert "no format for tool calls" in error["message"]
    assert param in (error.get("param") or error["message"])
    assert httpx.post(live.url + path, json=body).status_code == 200


def test_calls_of_the_older_form_are_refused(live: Live, plain: Live) -> None:
    said = {"role": "assistant", "content": "a", "function_call": None, "tool_calls": []}
    turns = [{"role": "user", "content": "a"}, said, {"role": "user", "content": "please say"}]
    for one in (live, plain):
        assert httpx.post(one.url + CHAT, json={"messages": turns}).status_code == 200
        called = {**said, "function_call": {"name": "look", "arguments": "{}"}}
        error = refused(one, CHAT, {"messages": [turns[0], called, turns[2]]})
        assert error["param"] == "messages.1.function_call"
        assert error["message"].endswith("is not supported here: leave it out.")


def test_null_is_as_good_as_nothing(live: Live) -> None:
    """Many clients write every field that they know of; what a later one may mean is not known."""
    turns = [{"role": "user", "content": "please say"}]
    choice = {"type": "auto", "disable_parallel_tool_use": False, "later": None}
    tool = {"type": "function", "function": {"name": "look"}, "later": None}
    unset = {"draft": None, "copies": None, "trace": None}
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": turns, "tools": [tool], "verbosity": None, "audio": None}),
        (CHAT, {"messages": turns, "stream": True, "stream_options": {"include_usage": None}}),
        (CHAT, {"messages": turns, "redrafter": unset}),
        (COMPLETIONS, {"prompt": "on", "later": None, "redrafter": unset}),
        (RESPONSES, {"input": [{"type": None, **turns[0]}]}),
        (RESPONSES, {"input": "please say", "reasoning": {"effort": None, "later": None}}),
        (MESSAGES, {"messages": turns, "max_tokens": 9, "container": None, "tool_choice": choice}),
    ]
    least = {"tools": [{"name": "look", "input_schema": {}}], "messages": turns}
    for named in ({"type": "auto"}, {"type": "tool", "name": "look"}):
        choice = {**named, "disable_parallel_tool_use": None}
        asked.append((f"{MESSAGES}/count_tokens", least | {"tool_choice": choice}))
    for path, body in asked:
        made = httpx.post(live.url + path, json=body)
        assert made.status_code == 200, made.text
    assert refused(live, COMPLETIONS, {"prompt": None})["param"] == "prompt"


def test_the_whole_prompt_may_be_marked_for_the_vendors_cache(live: Live) -> None:
    body = {
        "messages": [{"role": "user", "content": "please say"}],
        "cache_control": {"type": "ephemeral"},
    }
    assert httpx.post(f"{live.url}{MESSAGES}/count_tokens", json=body).status_code == 200
    assert httpx.post(live.url + MESSAGES, json=body | {"max_tokens": 9}).status_code == 200


def test_a_past_call_whose_kind_is_null_is_a_functions() -> None:
    function = {"name": "look", "arguments": "{}"}
    kinds: list[dict[str, Any]] = [{}, {"type": None}, {"type": "function"}]
    for kind in kinds:
        turns = [{"role": "assistant", "tool_calls": [{"id": "1", **kind, "function": function}]}]
        (task,) = parse_chat({"messages": turns}).tasks
        assert isinstance(task.prompt, Conversation)
        (call,) = task.prompt.messages[0]["tool_calls"]
        assert (list(call), call["type"]) == (["id", "type", "function"], "function")
