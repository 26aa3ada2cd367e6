"""What models write that no client could read: each answer is whole, and whole JSON."""

from __future__ import annotations

import json
import logging
from typing import Any, NoReturn

import httpx
import pytest
from live_server import Live, ScriptedSequences
from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, TokenizerWrapper

from mlx_redrafter.server.protocol import chat_answer, messages_answer, responses_answer
from mlx_redrafter.server.protocol.answer import Answer, Event, Text
from mlx_redrafter.server.work.answering import Answering, Job
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.segments import Segments
from mlx_redrafter.server.work.sequences import Decoding, NewToken

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PATHS = pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
QUESTION = [{"role": "user", "content": "please look"}]
LOOK = {"name": "look", "parameters": {"type": "object"}}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": QUESTION, "tools": [{"type": "function", "function": LOOK}]},
    MESSAGES: {
        "messages": QUESTION,
        "max_tokens": 500,
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
    },
    RESPONSES: {"input": QUESTION, "tools": [{"type": "function", **LOOK}]},
}


@pytest.fixture
def say(tokenizer: TokenizerWrapper, engine: ScriptedSequences) -> Any:
    """Sets what the model answers."""

    def setting(text: str) -> None:
        engine.answer = lambda _: list(tokenizer.encode(text, add_special_tokens=False))

    return setting


def called(arguments: str, name: str = "look") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def strict(text: str) -> Any:
    """Read JSON as other languages do."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def whole(live: Live, path: str, **more: Any) -> Any:
    response = httpx.post(live.url + path, json=BODIES[path] | more)
    assert response.status_code == 200, response.text
    return strict(response.text)


def streamed(live: Live, path: str, **more: Any) -> list[Any]:
    response = httpx.post(live.url + path, json=BODIES[path] | {"stream": True} | more)
    assert response.status_code == 200, response.text
    lines = response.text.splitlines()
    return [strict(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def content(made: dict[str, Any]) -> list[Any]:
    """The parts of a whole answer, in their order: texts, and (name, arguments) of calls."""
    if "choices" in made:
        message = made["choices"][0]["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        texts = [message["content"]] if message["content"] else []
        return texts + [(call["name"], strict(call["arguments"])) for call in calls]
    parts: list[Any] = []
    for part in made.get("content", made.get("output")):
        if part["type"] == "function_call":
            parts.append((part["name"], strict(part["arguments"])))
        elif part["type"] == "tool_use":
            parts.append((part["name"], part["input"]))
        elif part["type"] in ("text", "thinking"):
            parts.append(part[part["type"]])
        else:
            parts.append(part["content"][0]["text"])
    return parts


def rebuilt(path: str, events: list[Any]) -> dict[str, Any]:
    """The whole answer from its events."""
    if path == RESPONSES:
        assert events[-1]["type"] == "response.completed"
        response: dict[str, Any] = events[-1]["response"]
        return response
    if path == CHAT:
        deltas = [event["choices"][0]["delta"] for event in events]
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        text = "".join(delta.get("content", "") for delta in deltas)
        return {"choices": [{"message": {"content": text, "tool_calls": calls}}]}
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if "partial_json" in delta:
                blocks[-1]["input"] = strict(delta["partial_json"])
            else:
                kind = delta["type"].removesuffix("_delta")
                blocks[-1][kind] += delta[kind]
    assert events[-1]["type"] == "message_stop"
    return {"content": blocks}


# ---- calls that no client could read


@PATHS
@pytest.mark.parametrize(
    "arguments",
    [
        r'{"at": "\ud83d"}',
        r'{"\udfff": 1}',
        '{"at": NaN}',
        '{"at": [-Infinity]}',
        '{"at": 1e999}',
        '{"at": 99999999999999999999}',
        r'"{\"at\": NaN}"',
        '{"at": ' + "[" * 70 + "]" * 70 + "}",
    ],
)
def test_a_call_that_is_no_good_json_stays_text(
    live: Live, say: Any, path: str, arguments: str
) -> None:
    text = called(arguments)
    say(text)
    assert content(whole(live, path)) == [text]
    assert content(rebuilt(path, streamed(live, path))) == [text]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "look", "arguments": {"at": (float("inf"),)}},
        {"name": "look", "arguments": {"at": "\ud83d"}},
        {"name": "look", "id": "\ud83d", "arguments": {}},
        {"name": "look", "arguments": {"at": b"bytes"}},
    ],
)
def test_what_a_parser_makes_is_checked_as_well(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any]
) -> None:
    monkeypatch.setattr(tokenizer, "_tool_parser", lambda raw, tools: call)
    segments = Segments(tokenizer, 0, [{"type": "function", "function": LOOK}])
    parts = [*segments.feed("<tool_call>x</tool_call>", "own"), *segments.finish()]
    assert [getattr(part, "text", None) for part in parts] == ["<tool_call>x</tool_call>"]


@PATHS
def test_a_stream_that_cannot_be_written_ends_with_an_error(
    live: Live,
    say: Any,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> NoReturn:
        raise KeyError("secret")

    monkeypatch.setattr(chat_answer, "call_json", broken)
    monkeypatch.setattr(messages_answer.MessagesWriter, "_call", broken)
    monkeypatch.setattr(responses_answer.ResponsesWriter, "_call", broken)
    say("Wait." + called("{}"))
    with caplog.at_level(logging.ERROR):
        last = streamed(live, path)[-1]
    assert "its log says why" in json.dumps(last)
    assert "secret" not in json.dumps(last)
    assert "secret" in caplog.text
    assert last.get("type") == {CHAT: None, MESSAGES: "error", RESPONSES: "response.failed"}[path]


# ---- the order of an answer's parts


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<think>Hm.</think>\n\nCALL\nCALL\n", ["Hm.", None, None]),
        ("\n\nCALL\n\nBoth.\n", [None, "\n\nBoth.\n"]),
        ("See:\n\nCALL", ["See:", None]),
        ("See: \n\nthis.\nCALL\nAnd \nCALL", ["See: \n\nthis.", None, "\nAnd", None]),
        ("<think>Hm.</think>\nSee:\nCALL", ["Hm.", "\nSee:", None]),
        ("See:\n<think>Hm.</think>\n", ["See:\n", "Hm.", "\n"]),
        ("See:\n<tool_call>{no</tool_call>\n", ["See:\n<tool_call>{no</tool_call>\n"]),
        ("See:\n\n", ["See:\n\n"]),
        ("\n\nSee.", ["\n\nSee."]),
        ("\n\n", ["\n\n"]),
        ("\n<tool_call>{no</tool_call>", ["\n<tool_call>{no</tool_call>"]),
        ("CALL\n<think>Hm.</think>\n", [None, "Hm.", "\n"]),
    ],
)
def test_blank_lines_around_calls_are_the_formats(
    tokenizer: TokenizerWrapper, answer: str, said: list[str | None]
) -> None:
    segments = Segments(tokenizer, 0, [{"type": "function", "function": LOOK}])
    letters = answer.replace("CALL", called("{}"))
    whole = Answer()
    for part in [*(p for c in letters for p in segments.feed(c, "own")), *segments.finish()]:
        whole.add(part)
        if isinstance(part, Text):
            assert "".join(piece.text for piece in part.pieces) == part.text
    assert [part.text if isinstance(part, Text) else None for part in whole.parts] == said


@PATHS
def test_the_parts_of_an_answer_are_in_the_order_they_were_said_in(
    live: Live, say: Any, path: str
) -> None:
    first, second = ("look", {"at": "a"}), ("look", {"at": "b"})
    one, other = (called(json.dumps(arguments)) for _, arguments in (first, second))
    say(f"Wait.\n{one} And \n\n{other} then.")
    said = content(whole(live, path))
    assert said == content(rebuilt(path, streamed(live, path)))
    in_order = ["Wait.", first, " And", second, " then."]
    assert said == (["Wait. And then.", first, second] if path == CHAT else in_order)


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_what_was_thought_stands_where_it_was_thought(live: Live, say: Any, path: str) -> None:
    say("<think>Hm.</think>One." + called("{}") + "<think>Still.</think>Two.")
    said = content(whole(live, path))
    assert said[-1] == "Two."
    assert [part["type"] for part in parts_of(whole(live, path))] == [
        part["type"] for part in parts_of(rebuilt(path, streamed(live, path)))
    ]


def parts_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = made.get("content") or made["output"]
    return parts


def test_only_what_was_cut_off_is_incomplete(live: Live, say: Any) -> None:
    say("Wait." + called("{}") + " and on and on and on and on and on")
    made = whole(live, RESPONSES, max_output_tokens=70)
    assert made["status"] == "incomplete"
    statuses = [item["status"] for item in made["output"]]
    assert statuses == ["completed", "completed", "incomplete"]


def test_a_stream_that_was_cut_off_ends_with_the_event_of_openais(live: Live, say: Any) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    say("Wait and wait and wait.")
    with client.responses.stream(model="tiny", input=QUESTION, max_output_tokens=9) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert "Wait and wait and wait.".startswith(last.response.output_text)
    assert [item.status for item in last.response.output] == ["incomplete"]


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_an_empty_answer_has_no_parts(live: Live, say: Any, path: str) -> None:
    say("")
    assert content(whole(live, path)) == []
    assert content(rebuilt(path, streamed(live, path))) == []


def test_anthropics_client_takes_an_empty_answer(live: Live, say: Any) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)
    say("")
    asked = {"model": "tiny", "max_tokens": 9, "messages": QUESTION}
    assert client.messages.create(**asked).content == []
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().content == []


@PATHS
def test_what_python_takes_for_a_line_break_breaks_no_event(
    live: Live, say: Any, path: str
) -> None:
    """httpx and requests part the lines of a stream by ``str.splitlines``."""
    text = "One\u2028two\u2029three\x85four\x0bfive\x1csix\n."
    say(text)
    assert content(rebuilt(path, streamed(live, path))) == [text]


# ---- calls of what was not offered


@PATHS
def test_a_call_of_what_was_not_offered_stays_text(live: Live, say: Any, path: str) -> None:
    text = called("{}", name="glance")
    say(text)
    assert content(whole(live, path)) == [text]
    assert content(rebuilt(path, streamed(live, path))) == [text]


def test_a_named_tool_is_the_only_one_that_can_be_called(live: Live, say: Any) -> None:
    text = called("{}", name="glance")
    say(text.removeprefix("<tool_call>"))
    both = [{"type": "function", "function": {"name": name}} for name in ("look", "glance")]
    for name, said in (("look", [text]), ("glance", [("glance", {})])):
        choice = {"type": "function", "function": {"name": name}}
        assert content(whole(live, CHAT, tools=both, tool_choice=choice)) == said


@pytest.mark.parametrize("parallel", [True, False])
def test_calls_that_end_with_the_answer_are_as_many_as_may_be_made(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    """Mistral's format has no marker for the end of a call."""
    monkeypatch.setattr(tokenizer, "_tool_call_end", "")
    calls = [{"name": "look", "arguments": {"at": at}} for at in "ab"]
    monkeypatch.setattr(tokenizer, "_tool_parser", lambda raw, tools: calls)
    tools = ({"type": "function", "function": LOOK},)
    job = Job(0, Encoded([1], "normal", tools=tools, parallel=parallel), Decoding([1], 99, {}))
    answering = Answering(job, tokenizer, dict)
    whole = Answer()
    for token in tokenizer.encode("<tool_call>both", add_special_tokens=False):
        for event in answering.token(NewToken(0, token)):
            whole.add(event)
    for event in answering.token(NewToken(0, tokenizer.eos_token_id, finish_reason="stop")):
        whole.add(event)
    assert [strict(call.arguments)["at"] for call in whole.tool_calls] == ["a", "b"][: 1 + parallel]
    assert whole.end.reason == "tool_calls"


# ---- spaces, and ids that no text stands for


@pytest.mark.parametrize("begun", ["The", [{"type": "text", "text": "The"}]])
def test_an_answer_goes_on_with_its_space(live: Live, say: Any, begun: Any) -> None:
    say(" lazy dog")
    turns = [*QUESTION, {"role": "assistant", "content": begun}]
    assert content(whole(live, MESSAGES, messages=turns)) == [" lazy dog"]
    assert content(rebuilt(MESSAGES, streamed(live, MESSAGES, messages=turns))) == [" lazy dog"]
    nothing = [*QUESTION, {"role": "assistant", "content": ""}]
    assert content(whole(live, MESSAGES, messages=nothing)) == content(whole(live, MESSAGES))


@pytest.mark.parametrize("initial", [None, "normal"])
def test_ids_beyond_the_vocabulary_are_no_text(
    tokenizer: TokenizerWrapper, initial: str | None
) -> None:
    """Embeddings are often padded, and both a prompt and a model may name one of those rows."""
    strange = len(tokenizer) + 3
    strict = TokenizerWrapper(tokenizer._tokenizer, SPMStreamingDetokenizer)
    with pytest.raises(IndexError):
        strict.detokenizer.add_token(strange)
    prompt = [*tokenizer.encode("dog", add_special_tokens=False), strange]
    encoded = Encoded(prompt, initial, continues=initial is None)
    job = Job(0, encoded, Decoding(prompt, 3, {}))
    answering = Answering(job, strict, dict)
    events: list[Event] = []
    for token in (prompt[0], strange, prompt[0]):
        events += answering.token(NewToken(0, token, "own", None))
    texts = [event.text for event in events if isinstance(event, Text)]
    assert texts == [tokenizer.decode(prompt[:1])] * 2
