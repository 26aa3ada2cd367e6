"""The openai and anthropic packages against a server before a scripted engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Live, ScriptedSequences, at_once, eventually, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS, LONG, script

from mlx_redrafter.server.settings import ServerSettings

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
CLAUDE_TOOL = {
    "name": "look",
    "description": "Look at something.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def engine(tokenizer: TokenizerWrapper) -> ScriptedSequences:
    return script(tokenizer, delay=0.001)


def ask(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"please {word}"}]


# ---- OpenAI, chat completions


def test_a_chat_is_answered_whole(client: Any) -> None:
    made = client.chat.completions.create(model="tiny", messages=ask("say"), seed=7)
    choice = made.choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWERS["say"], "stop")
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert made.usage.prompt_tokens_details.cached_tokens == made.usage.prompt_tokens // 2
    assert made.redrafter["seed"] == 7
    assert made.redrafter["accepted"] > 0
    assert made.redrafter["tokens_per_step"] == 2.0


def test_a_chat_streams_the_same_text(client: Any) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=ask("smile"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWERS["smile"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_a_trace_tells_where_the_text_came_from(live: Live) -> None:
    body = {"messages": ask("say"), "stream": True, "redrafter": {"trace": True}}
    pieces, trees = [], []
    for chunk in stream_of(live, "/v1/chat/completions", body):
        extra = chunk.get("redrafter", {})
        pieces += extra.get("pieces", [])
        trees += [extra["step"]["tree"]] if "step" in extra else []
    assert "".join(text for text, _ in pieces) == ANSWERS["say"]
    assert {source for _, source in pieces} == {"guessed", "own"}
    assert trees[0]["parents"][0] == -1
    assert trees[0]["path"][0] == 0


def test_a_trace_tells_how_many_others_shared_its_time(
    tokenizer: TokenizerWrapper,
) -> None:
    body = {"messages": ask("long"), "stream": True, "redrafter": {"trace": True}}

    def make() -> ScriptedSequences:
        return script(tokenizer, delay=0.02)

    with serve_scripted(tokenizer, make, names=("one", "two")) as live:
        seen: dict[int, list[int]] = {}

        def run(place: int) -> None:
            model = ("one", "one", "two")[place]
            chunks = stream_of(live, "/v1/chat/completions", {**body, "model": model})
            extras = [chunk.get("redrafter", {}) for chunk in chunks]
            seen[place] = [extra["step"]["others"] for extra in extras if "step" in extra]

        at_once(run, 3, seconds=30)
        assert [max(others) for others in seen.values()] == [2, 2, 2]
        run(0)
        assert set(seen[0]) == {0}


def test_thinking_is_told_apart(client: Any) -> None:
    message = client.chat.completions.create(model="tiny", messages=ask("think")).choices[0].message
    assert message.content == "Yes, it is."
    assert message.reasoning_content == "Is it lazy?"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(client: Any, stream: bool) -> None:
    options = {"model": "tiny", "messages": ask("call"), "tools": [TOOL]}
    if stream:
        with client.chat.completions.stream(**options) as events:
            made = events.get_final_completion()
    else:
        made = client.chat.completions.create(**options)
    choice = made.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    (call,) = choice.message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments) == {"at": "dog"}


def test_a_call_and_its_result_go_back_to_the_template(
    client: Any, engine: ScriptedSequences, tokenizer: TokenizerWrapper
) -> None:
    function = {"name": "look", "arguments": '{"at": "dog"}'}
    messages = [
        *ask("call"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "it sleeps"},
    ]
    client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert "it sleeps" in prompt
    assert '"arguments": {"at": "dog"}' in prompt


@pytest.mark.parametrize(("content", "text"), [(None, "Not today."), ("No.", "No.Not today.")])
def test_an_earlier_refusal_is_read_like_text(
    client: Any,
    engine: ScriptedSequences,
    tokenizer: TokenizerWrapper,
    content: str | None,
    text: str,
) -> None:
    refused = {"role": "assistant", "content": content, "refusal": "Not today."}
    client.chat.completions.create(model="tiny", messages=[*ask("say"), refused, *ask("say")])
    assert f"<|assistant|>{text}" in tokenizer.decode(engine.added[-1].prompt)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_that_is_required_is_begun(client: Any, choice: Any) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=ask("call"), tools=[TOOL], tool_choice=choice
    )
    message = made.choices[0].message
    assert not message.content
    assert message.tool_calls[0].function.name == "look"


def test_one_call_at_a_time_where_that_is_wanted(client: Any) -> None:
    both = client.chat.completions.create(model="tiny", messages=ask("twice"), tools=[TOOL])
    assert [c.function.arguments for c in both.choices[0].message.tool_calls] == [
        '{"at": "a"}',
        '{"at": "b"}',
    ]
    one = client.chat.completions.create(
        model="tiny", messages=ask("twice"), tools=[TOOL], parallel_tool_calls=False
    )
    assert [c.function.arguments for c in one.choices[0].message.tool_calls] == ['{"at": "a"}']
    assert one.choices[0].finish_reason == "tool_calls"


def test_what_is_no_call_stays_text(client: Any) -> None:
    broken = client.chat.completions.create(model="tiny", messages=ask("broken"), tools=[TOOL])
    assert broken.choices[0].message.content == ANSWERS["broken"]
    none = client.chat.completions.create(model="tiny", messages=ask("call"))
    assert none.choices[0].message.content == ANSWERS["call"]
    assert none.choices[0].message.tool_calls is None


def test_stop_strings_and_limits_end_an_answer(client: Any) -> None:
    made = client.chat.completions.create(model="tiny", messages=ask("say"), stop=[" not"])
    assert made.choices[0].message.content == "The dog does"
    assert made.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="tiny", messages=ask("say"), max_completion_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3


def test_several_answers_have_seeds_of_their_own(client: Any, engine: ScriptedSequences) -> None:
    made = client.chat.completions.create(model="tiny", messages=ask("say"), n=3, seed=5)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert [d.sampling["seed"] for d in engine.added[-3:]] == [5, 6, 7]
    assert made.usage.prompt_tokens == len(engine.added[-1].prompt)


def test_log_probabilities_name_every_token(client: Any, tokenizer: TokenizerWrapper) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=ask("say"), logprobs=True, top_logprobs=2
    )
    content = made.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == ANSWERS["say"]
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def test_sampling_reaches_the_engine(client: Any, engine: ScriptedSequences) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=ask("say"),
        temperature=0.7,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"5": -100},
        seed=3,
        extra_body={"top_k": 4, "min_p": 0.1, "redrafter": {"draft": False}},
    )
    decoding = engine.added[-1]
    assert decoding.sampling == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": ((5, -100.0),),
        "seed": 3,
    }
    assert decoding.draft is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("n", 0),
        ("response_format", {"type": "grammar"}),
        ("functions", []),
        ("audio", {"voice": "x"}),
        ("top_logprobs", 3),
        ("messages", []),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("logit_bias", {"99999999": 1}),
        ("chat_template_kwargs", {"chat_template": "x"}),
        ("tool_choice", "required"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: Any, field: str, value: Any) -> None:
    body = {"messages": ask("say"), field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    error = caught.value.body
    assert error["type"] == "invalid_request_error"
    assert field in (error["param"] or "") or field in error["message"]


def test_a_model_that_is_not_served_is_not_loaded(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="mlx-community/other", messages=ask("say"))
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_prompt_that_is_too_long_is_refused_in_the_words_agents_know(
    client: Any, claude: Any
) -> None:
    messages = [{"role": "user", "content": "x " * 9000}]
    with pytest.raises(openai.BadRequestError, match=r"prompt is too long: .* > 4095 maximum") as e:
        client.chat.completions.create(model="tiny", messages=messages)
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .* > 4095 maximum"):
        claude.messages.create(model="tiny", messages=messages, max_tokens=5)
    events = list(client.responses.create(model="tiny", input=messages, stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "context_length_exceeded"


def test_a_crash_of_one_request_ends_that_one_alone(client: Any, live: Live) -> None:
    results: dict[str, Any] = {}

    def run(word: str) -> None:
        try:
            made = client.chat.completions.create(model="tiny", messages=ask(word))
            results[word] = made.choices[0].message.content
        except openai.APIStatusError as error:
            results[word] = error

    threads = [threading.Thread(target=run, args=(word,)) for word in ("long", "crash", "say")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results["long"] == LONG
    assert results["say"] == ANSWERS["say"]
    assert results["crash"].status_code == 500
    assert "secret" not in str(results["crash"].body)
    assert httpx.get(f"{live.url}/health").status_code == 200


def test_eight_at_once_each_get_their_own_answer(live: Live, engine: ScriptedSequences) -> None:
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    words = ["say", "think", "long", "smile"] * 2
    texts: dict[int, str] = {}

    def run(place: int) -> None:
        stream = client.chat.completions.create(
            model="tiny", messages=ask(words[place]), stream=True
        )
        parts = [chunk.choices[0].delta for chunk in stream]
        texts[place] = "".join(part.content or "" for part in parts)

    at_once(run, 8, seconds=30)
    expected = [ANSWERS[word].rpartition("</think>")[2] for word in words]
    assert [texts[place] for place in range(8)] == expected
    assert engine.most <= 8


# ---- OpenAI, completions


def test_a_text_is_continued(client: Any) -> None:
    made = client.completions.create(model="tiny", prompt="on", logprobs=1)
    assert made.choices[0].text == " and on"
    assert "".join(made.choices[0].logprobs.tokens) == " and on"
    several = client.completions.create(model="tiny", prompt=["a", "b"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    ids = client.completions.create(model="tiny", prompt=[40, 41], stream=True)
    assert "".join(chunk.choices[0].text for chunk in ids) == " and on"


def test_a_completions_stream_ends_with_its_usage(live: Live) -> None:
    body = {"prompt": "on", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = stream_of(live, "/v1/completions", body)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    without = stream_of(live, "/v1/completions", {"prompt": "on", "stream": True})
    assert all("usage" not in chunk for chunk in without)


# ---- OpenAI, responses


def test_a_response_is_made_whole(client: Any) -> None:
    made = client.responses.create(model="tiny", input="please say", instructions="Be short.")
    assert made.output_text == ANSWERS["say"]
    assert made.status == "completed"
    assert made.usage.input_tokens_details.cached_tokens == made.usage.input_tokens // 2


def test_a_response_streams_what_codex_reads(client: Any) -> None:
    tools = [{"type": "function", "strict": False, **TOOL["function"]}]
    with client.responses.stream(
        model="tiny", input=[{"role": "user", "content": "please call"}], tools=tools
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.done") == 2
    message, call = final.output
    assert message.content[0].text == "Let me look."
    assert (call.name, json.loads(call.arguments)) == ("look", {"at": "dog"})


def test_a_response_takes_earlier_turns(
    client: Any, engine: ScriptedSequences, tokenizer: TokenizerWrapper
) -> None:
    tools = [{"type": "function", "strict": False, **TOOL["function"]}]
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "1", "output": "it sleeps"}
    history = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "see"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "h"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "m"}]},
        call,
        output,
    ]
    client.responses.create(model="tiny", input=history, tools=tools, instructions="Be short.")
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert "Be short.\n\nBe kind." in prompt
    assert prompt.index("<think>hm</think>") < prompt.index("it sleeps")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("text", {"format": {"type": "grammar", "syntax": "lark"}}),
    ],
)
def test_responses_refuse_what_they_do_not_keep(client: Any, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=field):
        client.responses.create(model="tiny", input="please say", **{field: value})


# ---- Anthropic


def test_a_message_is_made_whole(claude: Any) -> None:
    made = claude.messages.create(
        model="tiny", max_tokens=99, messages=ask("think"), system="Be short."
    )
    assert [block.type for block in made.content] == ["thinking", "text"]
    thoughts = made.usage.output_tokens_details.thinking_tokens
    assert 0 < thoughts < made.usage.output_tokens
    assert made.content[1].text == "Yes, it is."
    assert made.stop_reason == "end_turn"
    assert made.usage.cache_read_input_tokens > 0


def test_a_message_streams_blocks(claude: Any) -> None:
    with claude.messages.stream(
        model="tiny", max_tokens=99, messages=ask("call"), tools=[CLAUDE_TOOL]
    ) as stream:
        kinds = [event.type for event in stream]
        made = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    text, call = made.content
    assert text.text == "Let me look."
    assert (call.type, call.name, call.input) == ("tool_use", "look", {"at": "dog"})
    assert made.stop_reason == "tool_use"


def test_a_tool_result_follows_its_call(
    claude: Any, engine: ScriptedSequences, tokenizer: TokenizerWrapper
) -> None:
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "dog"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "it sleeps"}
    messages = [
        *ask("call"),
        {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "please say"}]},
    ]
    made = claude.messages.create(
        model="tiny",
        max_tokens=99,
        messages=messages,
        tools=[{**CLAUDE_TOOL, "cache_control": {"type": "ephemeral"}}],
    )
    assert made.content[0].text == ANSWERS["say"]
    prompt = tokenizer.decode(engine.added[-1].prompt)
    assert prompt.index("Wait.") < prompt.index("<|tool|>") if "<|tool|>" in prompt else True
    assert prompt.index("it sleeps") < prompt.rindex("please say")


def test_a_stop_sequence_is_named(claude: Any) -> None:
    made = claude.messages.create(
        model="tiny", max_tokens=99, messages=ask("say"), stop_sequences=["!", " not"]
    )
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", " not")


def test_an_answer_can_be_begun(
    claude: Any, engine: ScriptedSequences, tokenizer: TokenizerWrapper
) -> None:
    messages = [*ask("say"), {"role": "assistant", "content": "The"}]
    claude.messages.create(model="tiny", max_tokens=9, messages=messages)
    assert tokenizer.decode(engine.added[-1].prompt).endswith("<|assistant|>The")


def test_tokens_are_counted(claude: Any, engine: ScriptedSequences) -> None:
    counted = claude.messages.count_tokens(model="tiny", messages=ask("say"))
    claude.messages.create(model="tiny", max_tokens=9, messages=ask("say"))
    assert counted.input_tokens == len(engine.added[-1].prompt)


def test_a_message_that_is_wrong_is_refused_in_its_own_form(claude: Any, live: Live) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0") as caught:
        claude.messages.create(
            model="tiny",
            max_tokens=9,
            messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}],
        )
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert caught.value.request_id is not None
    (model,) = claude.models.list()
    assert (model.id, model.lifecycle) == ("tiny", "active")
    assert (model.max_input_tokens, model.max_tokens) == (4096, 4096)
    assert claude.models.retrieve("tiny") == model


# ---- leaving


def test_a_client_that_leaves_frees_its_place(tokenizer: TokenizerWrapper) -> None:
    engine = script(tokenizer, delay=0.02)
    with serve_scripted(tokenizer, engine) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", messages=ask("long"), stream=True)
        next(iter(stream))
        stream.close()
        assert eventually(lambda: engine.stopped == [1], 5)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(
                model="tiny", messages=ask("long")
            )
        assert eventually(lambda: engine.stopped == [1, 2], 5)


def test_a_full_queue_says_when_to_come_back(tokenizer: TokenizerWrapper) -> None:
    settings = ServerSettings(max_concurrent=1, max_queue=1)
    with serve_scripted(tokenizer, script(tokenizer, delay=0.02), settings) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        streams = [
            client.chat.completions.create(model="tiny", messages=ask("long"), stream=True)
            for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=ask("say"))
        assert int(caught.value.response.headers["retry-after"]) >= 1
        for stream in streams:
            stream.close()
        assert eventually(lambda: answers(client), 5)


def answers(client: Any) -> bool:
    try:
        client.chat.completions.create(model="tiny", messages=ask("say"))
    except openai.RateLimitError:
        return False
    return True


def test_a_long_prompt_keeps_its_stream_alive(tokenizer: TokenizerWrapper) -> None:
    settings = ServerSettings(keep_alive=0.05)
    engine = script(tokenizer, delay=0.12, reading=3)
    with serve_scripted(tokenizer, engine, settings) as live:
        body = {"messages": ask("smile"), "stream": True, "max_tokens": 1}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as response:
            raw = "".join(response.iter_text())
        assert ": keep-alive" in raw
        assert raw.count(": prompt") == 2
        with httpx.stream(
            "POST", f"{live.url}/v1/responses", json={"input": "please say", "stream": True}
        ) as response:
            raw = "".join(response.iter_text())
        assert raw.count("event: response.in_progress") > 2


def test_a_step_that_fails_for_all_leaves_the_server_working(tokenizer: TokenizerWrapper) -> None:
    broken = [True]

    def crash() -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("out of memory at 0xdead")

    def make() -> ScriptedSequences:
        return script(tokenizer, crash=crash)

    with serve_scripted(tokenizer, make) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=ask("say"))
        assert "0xdead" not in str(caught.value.body)
        made = client.chat.completions.create(model="tiny", messages=ask("say"))
        assert made.choices[0].message.content == ANSWERS["say"]


def test_running_answers_finish_when_the_server_is_told_to_stop(
    tokenizer: TokenizerWrapper,
) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.01)) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", messages=ask("long"), stream=True)
        parts = [next(iter(stream))]
        live.server.should_exit = True
        time.sleep(0.05)
        parts += list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in parts if c.choices) == LONG
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="tiny", messages=ask("say"))


def test_answers_that_take_too_long_to_finish_are_ended_with_a_word(
    tokenizer: TokenizerWrapper,
) -> None:
    settings = ServerSettings(grace=0.2)
    with serve_scripted(tokenizer, script(tokenizer, delay=0.1), settings) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", messages=ask("long"), stream=True)
        next(iter(stream))
        live.server.should_exit = True
        with pytest.raises(openai.APIError, match="The server is shutting down"):
            list(stream)


def stream_of(live: Live, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with httpx.stream("POST", live.url + path, json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def test_paths_of_the_machine_are_not_shown(live: Live, tmp_path: Path) -> None:
    for path in ("/etc/passwd", "/page/../settings.py", "/page.css/..%2f..%2fsettings.py"):
        response = httpx.get(live.url + path)
        assert response.status_code == 404
        assert response.json()["error"]["message"].startswith("There is nothing at this path")
