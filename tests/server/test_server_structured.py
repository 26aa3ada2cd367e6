"""Answers that follow a JSON schema, by each API, from the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from bundles import make_bundle
from live_server import Live, at_once, serve
from pydantic import BaseModel

from mlx_redrafter import generate, load
from mlx_redrafter.server.loading import ModelSpec, load_models
from mlx_redrafter.server.metrics import Metrics
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.work import service
from mlx_redrafter.text.json_schemas import checked_schema

MESSAGES: Any = [{"role": "user", "content": "The dog does not mind."}]


class Found(BaseModel):
    """What answers hold."""

    kind: Literal["dog", "fox"]
    lazy: bool


SCHEMA: dict[str, Any] = {**Found.model_json_schema(), "additionalProperties": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def live(bundle: Any) -> Iterator[Live]:
    settings, metrics = ServerSettings(sampling={"temperature": 0.0}), Metrics()
    thread, served = load_models([ModelSpec(str(bundle), plan=False)], settings, metrics)
    with serve(thread, served, settings, metrics) as live:
        yield live


def test_chat_completions_are_parsed(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(model="default", messages=MESSAGES, response_format=Found)
    assert isinstance(made.choices[0].message.parsed, Found)
    assert made.choices[0].finish_reason == "stop"


def test_streams_are_parsed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="default", messages=MESSAGES, response_format=Found
    ) as stream:
        made = stream.get_final_completion()
    assert isinstance(made.choices[0].message.parsed, Found)


def test_responses_are_parsed(client: openai.OpenAI) -> None:
    made = client.responses.parse(model="default", input="A dog.", text_format=Found)
    assert isinstance(made.output_parsed, Found)
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"


def test_messages_follow_a_schema(claude: anthropic.Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    body: Any = {"max_tokens": 200, "messages": MESSAGES, "output_config": form}
    made: Any = claude.messages.create(model="default", **body)
    assert Found.model_validate_json(made.content[0].text)
    assert made.stop_reason == "end_turn"


def test_any_object_is_json(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    made = client.chat.completions.create(
        model="default", messages=MESSAGES, response_format=form, max_tokens=400, temperature=1.0
    )
    choice = made.choices[0]
    assert (choice.message.content or "").startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


def test_others_in_the_batch_are_free_and_the_answer_is_that_of_generate(
    client: openai.OpenAI, bundle: Any
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA}}
    asked: list[dict[str, Any]] = [{}, {"response_format": form}, {}, {"response_format": form}]

    said: dict[int, str] = {}

    def ask(number: int) -> None:
        options: Any = asked[number]
        made = client.chat.completions.create(
            model="default", messages=MESSAGES, max_tokens=30, temperature=1.0, seed=7, **options
        )
        said[number] = made.choices[0].message.content or ""

    at_once(ask, 4, seconds=60)
    model, tokenizer = load(bundle)
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 7}
    free = generate(model, tokenizer, MESSAGES, **options)
    bound = generate(model, tokenizer, MESSAGES, json_schema=SCHEMA, **options)
    assert said == {0: free, 1: bound, 2: free, 3: bound}


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/chat/completions", "response_format.json_schema.schema", {
            "messages": MESSAGES,
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}},
            },
        }),
        ("/v1/responses", "text.format.schema", {
            "input": "A dog.",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}},
        }),
        ("/v1/messages", "output_config.format.schema", {
            "messages": MESSAGES, "max_tokens": 9,
            "output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}},
        }),
        ("/v1/messages", "output_format.schema", {
            "messages": [*MESSAGES, {"role": "assistant", "content": "{"}], "max_tokens": 9,
            "output_format": {"type": "json_schema", "schema": SCHEMA},
        }),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_its_field(
    live: Live, path: str, field: str, body: dict[str, Any]
) -> None:
    response = httpx.post(f"{live.url}{path}", json=body, timeout=60)
    assert response.status_code == 400
    said = response.json()["error"]
    assert field in (said.get("param") or said["message"])
    assert "follow" in said["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "leave out",
        ),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
                "output_format": {"type": "json_schema", "schema": {"type": "object"}},
            },
            "output_format and output_config.format differ",
        ),
    ],
)
def test_tokens_are_counted_of_what_would_be_answered(
    live: Live, path: str, fields: dict[str, Any], words: str
) -> None:
    body = {"messages": MESSAGES, **({} if path.endswith("tokens") else {"max_tokens": 9})}
    response = httpx.post(f"{live.url}{path}", json={**body, **fields}, timeout=60)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    same = {"type": "json_schema", "schema": SCHEMA}
    both = {**body, "output_config": {"format": same}, "output_format": same}
    assert httpx.post(f"{live.url}{path}", json=both, timeout=60).status_code == 200


def no_number(text: str) -> None:
    """Not JSON, but Python's reader takes it."""
    raise ValueError(text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {
            "messages": MESSAGES, "logprobs": True, "top_logprobs": 20,
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA},
            },
        }),
        ("/v1/responses", {
            "input": "A dog.", "include": ["message.output_text.logprobs"], "top_logprobs": 20,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        }),
    ],
)  # fmt: skip
def test_log_probabilities_beside_a_schema_are_numbers(
    live: Live, path: str, body: dict[str, Any], stream: bool
) -> None:
    """Of as many tokens as may come next, if those are fewer than were asked for."""
    response = httpx.post(f"{live.url}{path}", json={**body, "stream": stream}, timeout=60)
    assert response.status_code == 200, response.text
    lines = response.text.splitlines() if stream else [f"data: {response.text}"]
    told = [line[6:] for line in lines if line.startswith("data: {")]
    found = [
        entry for text in told for entry in entries_of(json.loads(text, parse_constant=no_number))
    ]
    counts = {len(entry["top_logprobs"]) for entry in found}
    assert min(counts) == 1 < max(counts) <= 20
    for entry in found:
        assert entry["logprob"] <= max(one["logprob"] for one in entry["top_logprobs"]) <= 0


def entries_of(part: Any) -> Iterator[dict[str, Any]]:
    """Whatever tells likeliest tokens, in an answer of any API."""
    if isinstance(part, dict):
        if part.get("top_logprobs") and "logprob" in part:
            yield part
        for value in part.values():
            yield from entries_of(value)
    elif isinstance(part, list):
        for one in part:
            yield from entries_of(one)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_whose_schema_leads_nowhere_fails_alone(live: Live, stream: bool) -> None:
    leads_nowhere = {
        "type": "object",
        "properties": {"next": {"$ref": "#/properties/next"}},
        "required": ["next"],
    }
    said: dict[int, httpx.Response] = {}

    def ask(number: int) -> None:
        form = {"name": "n", "schema": leads_nowhere if number == 1 else SCHEMA}
        body = {
            "messages": MESSAGES,
            "stream": stream and number == 1,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        said[number] = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)

    at_once(ask, 3, seconds=60)
    assert said[1].status_code == (200 if stream else 400)
    assert "cannot go on by its JSON schema" in said[1].text
    assert '"finish_reason": "stop"' not in said[1].text
    for number in (0, 2):
        choice = said[number].json()["choices"][0]
        assert Found.model_validate_json(choice["message"]["content"])


def test_a_schema_is_prepared_once_for_all_answers(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []

    def check(schema: Any, name: str) -> str:
        checked.append(schema)
        return checked_schema(schema, name)

    monkeypatch.setattr(service, "checked_schema", check)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["one", "two"]}}}
    body = {"messages": MESSAGES, "n": 4, "response_format": form}
    made = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60).json()
    said = [json.loads(choice["message"]["content"]) for choice in made["choices"]]
    assert len(said) == 4
    assert set(said) <= {"one", "two"}
    assert len(checked) == 1
