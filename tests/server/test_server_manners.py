"""Keys, hosts, origins, bodies, metrics: what every request meets before it is answered."""

from __future__ import annotations

import gzip
import json
import socket
import string
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Live, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS, script

from mlx_redrafter.server import running
from mlx_redrafter.server.protocol.chat_request import parse_chat
from mlx_redrafter.server.protocol.completions import parse_completion
from mlx_redrafter.server.protocol.failures import ApiError
from mlx_redrafter.server.protocol.json_body import MAX_DEPTH, parse_body
from mlx_redrafter.server.protocol.messages_request import parse_messages
from mlx_redrafter.server.protocol.responses_request import parse_responses
from mlx_redrafter.server.protocol.task import Parsed, Task
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.web.page_files import PAGE_FILES

KEY = "sk-secrét"
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "please say"}]}


@pytest.fixture(scope="module")
def server_settings() -> ServerSettings:
    return ServerSettings(max_body=20_000)


@pytest.fixture(scope="module")
def locked(tokenizer: TokenizerWrapper) -> Iterator[Live]:
    settings = ServerSettings(api_key=KEY, allowed_origins=("https://chat.example",))
    with serve_scripted(tokenizer, script(tokenizer), settings) as live:
        yield live


# ---- bodies


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"\xff{}", "UTF-8"),
        (b'{"a": NaN}', "not a number"),
        (b'{"a": -Infinity}', "not a number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 99999999999999999999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "valid JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too deeply"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "too deeply"),
    ],
)
def test_a_body_that_is_no_good_json_is_refused(live: Live, raw: bytes, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    for path in (CHAT, "/v1/messages"):
        response = httpx.post(live.url + path, content=raw, headers=headers)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [
        "messages", "model", "prompt", "input", "tools", "tool_choice", "stop", "stream", "seed",
        "temperature", "max_tokens", "role", "content", "type", "text", "system", "logit_bias",
        "thinking", "redrafter", "stop_sequences", "tool_calls", "function", "arguments", "n",
    ]
)  # fmt: skip
LIKELY = st.recursive(
    JSON | st.sampled_from(["user", "assistant", "text", "function", "auto", "tool", 1, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, LIKELY, max_size=6))
@pytest.mark.parametrize("parse", [parse_chat, parse_completion, parse_responses, parse_messages])
def test_whatever_comes_is_understood_or_refused(parse: Any, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    tasks, error = understood(parse, raw)
    if error is None:
        assert tasks
    else:
        assert error.status == 400
        assert json.dumps(error.body("openai"))
        assert json.dumps(error.body("anthropic"))


def understood(parse: Any, raw: bytes) -> tuple[list[Any], ApiError | None]:
    try:
        return parse(parse_body(raw)).tasks, None
    except ApiError as error:
        return [], error


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    _, error = understood(lambda body: Parsed(None, [Task(str(body))]), raw)
    assert error is None or error.status == 400


def test_nesting_is_bounded_where_it_says(live: Live) -> None:
    fits = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_body(fits)
    with pytest.raises(ApiError, match="too deeply"):
        parse_body(b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")


def test_a_body_is_bounded_whether_its_length_is_declared_or_not(live: Live) -> None:
    big = json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode()
    headers = {"Content-Type": "application/json"}
    declared = httpx.post(live.url + CHAT, content=big, headers=headers)
    assert declared.status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(big), 1000):
            yield big[start : start + 1000]

    streamed = httpx.post(live.url + "/v1/messages", content=pieces(), headers=headers)
    assert streamed.status_code == 413
    assert streamed.json()["error"]["type"] == "request_too_large"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_a_web_page_is_no_request(live: Live, kind: str) -> None:
    response = httpx.post(live.url + CHAT, content=json.dumps(ASK), headers={"Content-Type": kind})
    assert response.status_code == 415


def test_mlx_lms_path_without_v1_is_served_too(live: Live) -> None:
    assert httpx.post(live.url + "/chat/completions", json=ASK).status_code == 200


def test_a_mark_of_windows_before_the_body_is_read_over(live: Live) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(ASK).encode()
    headers = {"Content-Type": "application/json"}
    assert httpx.post(live.url + CHAT, content=raw, headers=headers).status_code == 200


def test_no_repetition_penalty_is_said_as_to_mlx_lms_server(live: Live) -> None:
    assert httpx.post(live.url + CHAT, json=ASK | {"repetition_penalty": 0}).status_code == 200


# ---- who may ask


def test_a_key_is_needed_everywhere_but_for_the_page(locked: Live) -> None:
    for path in ("/v1/models", "/metrics", "/status", "/openapi.json"):
        assert httpx.get(locked.url + path).status_code == 401
    refused = httpx.post(locked.url + "/v1/messages", json=ASK)
    assert refused.json()["error"]["type"] == "authentication_error"
    assert "Authorization: Bearer KEY" in refused.json()["error"]["message"]
    assert refused.headers["www-authenticate"] == "Bearer"
    for path in (*PAGE_FILES, "/health"):
        assert httpx.get(locked.url + path).status_code == 200
    shown: list[dict[str, Any]] = [
        {"Authorization": f"Bearer {KEY}".encode()},
        {"x-api-key": KEY.encode()},
    ]
    for headers in shown:
        assert httpx.get(locked.url + "/v1/models", headers=headers).status_code == 200
    for wrong in (b"Bearer", b"Bearer sk-secr", b"Basic " + KEY.encode(), b"Bearer \xff\xfe"):
        headers = {"Authorization": wrong}
        assert httpx.get(locked.url + "/v1/models", headers=headers).status_code == 401


def test_a_name_that_is_not_this_machines_is_turned_away(live: Live) -> None:
    port = live.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert httpx.get(live.url + "/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        refused = httpx.get(live.url + "/health", headers={"Host": host})
        assert refused.status_code == 400
        assert "--allowed-host" in refused.json()["error"]["message"]
    claude = httpx.post(live.url + "/v1/messages", json=ASK, headers={"Host": "evil.example"})
    assert claude.json()["type"] == "error"


@pytest.mark.parametrize(
    "host",
    [
        "[::1",
        "[::1]evil",
        "127.0.0.1:80:80",
        "user@127.0.0.1",
        "127.0.0.1#a",
        "localhost:a.example",
    ],
)
def test_names_that_only_look_like_this_machines_are_turned_away(live: Live, host: str) -> None:
    said = talk(live, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 400 ")


def talk(live: Live, raw: bytes) -> bytes:
    """Send bytes as they are; returns all that comes until the server closes."""
    port = int(live.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_requests_in_one_breath_are_answered_in_turn(live: Live) -> None:
    body = json.dumps(ASK).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    ask = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    end = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    said = talk(live, ask + ask + end)
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert said.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    ],
)
def test_what_is_no_http_is_closed(live: Live, head: bytes) -> None:
    try:
        said = talk(live, head)
    except ConnectionResetError:  # closed before all of it was read
        said = b"HTTP/1.1 400 "
    assert said.startswith(b"HTTP/1.1 400 ")
    assert httpx.get(live.url + "/health").status_code == 200


def test_connections_without_a_request_are_closed(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "HEAD_SECONDS", 0.3)
    with serve_scripted(tokenizer, script(tokenizer, delay=0.05)) as live:
        for begun in (b"", b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX: "):
            assert talk(live, begun) == b""
        slow = httpx.post(live.url + CHAT, json=ASK | {"stream": True})
        assert slow.elapsed.total_seconds() > 0.3
        assert slow.text.endswith("data: [DONE]\n\n")
        with httpx.Client() as kept:  # a connection that is used again
            assert kept.get(live.url + "/health").status_code == 200
            assert kept.post(live.url + CHAT, json=ASK).status_code == 200


def test_compressed_bodies_are_refused(live: Live) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    packed = gzip.compress(json.dumps(ASK).encode())
    response = httpx.post(live.url + CHAT, content=packed, headers=headers)
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["error"]["message"]


def test_pages_of_other_origins_are_turned_away(live: Live, locked: Live) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        response = httpx.post(live.url + CHAT, json=ASK, headers={"Origin": origin})
        assert response.status_code == 403
        assert "--allowed-origin ORIGIN" in response.json()["error"]["message"]
        assert "access-control-allow-origin" not in response.headers
    own = httpx.post(live.url + CHAT, json=ASK, headers={"Origin": live.url})
    assert own.json()["choices"][0]["message"]["content"] == ANSWERS["say"]
    asks = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = httpx.options(locked.url + CHAT, headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    refused = httpx.options(locked.url + CHAT, headers={**asks, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers


def test_a_page_that_is_allowed_may_come_from_the_web_and_read_when_to_come_again(
    locked: Live,
) -> None:
    asks = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    allowed = httpx.options(locked.url + CHAT, headers=asks)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-private-network"] == "true"
    other = httpx.options(locked.url + CHAT, headers={**asks, "Origin": "https://evil.example"})
    assert other.status_code == 400
    answered = httpx.post(locked.url + CHAT, json=ASK, headers={"Origin": "https://chat.example"})
    assert answered.headers["access-control-expose-headers"] == "Retry-After, request-id"


def test_the_page_may_load_nothing_from_elsewhere(live: Live) -> None:
    policy = httpx.get(live.url + "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


# ---- what it tells of itself


def test_counters_are_told_to_prometheus(live: Live) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def counted() -> dict[str, float]:
        text = httpx.get(live.url + "/metrics").text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("reason", "stop") == "stop"
        }

    httpx.post(live.url + CHAT, json=ASK)
    before = counted()
    httpx.post(live.url + CHAT, json=ASK)
    after = counted()
    assert after["redrafter_answers_total"] == before["redrafter_answers_total"] + 1
    assert after["redrafter_generated_tokens_total"] > before["redrafter_generated_tokens_total"]
    assert after["redrafter_first_token_seconds_count"] >= 2
    assert after["redrafter_running_sequences"] == 0


def test_an_engine_that_ended_is_not_healthy(tokenizer: TokenizerWrapper) -> None:
    def crash() -> None:
        raise SystemExit("out")

    with serve_scripted(tokenizer, script(tokenizer, crash=crash)) as live:
        assert httpx.get(live.url + "/health").status_code == 200
        response = httpx.post(live.url + CHAT, json=ASK)
        assert response.status_code == 503
        assert httpx.get(live.url + "/health").status_code == 503
        assert httpx.post(live.url + CHAT, json=ASK).status_code == 503


def test_several_models_are_served_by_name(tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(tokenizer, script(tokenizer), names=("one", "org/two")) as live:
        listed = httpx.get(live.url + "/v1/models").json()
        assert [model["id"] for model in listed["data"]] == ["one", "org/two"]
        assert httpx.get(live.url + "/v1/models/org/two").json()["id"] == "org/two"
        made = httpx.post(live.url + CHAT, json={**ASK, "model": "org/two"}).json()
        assert made["model"] == "org/two"
        assert httpx.post(live.url + CHAT, json=ASK).json()["model"] == "one"
        none = httpx.post(live.url + CHAT, json={**ASK, "model": "/etc/passwd"})
        assert none.status_code == 404


def test_a_seed_is_drawn_and_told_where_none_is_given(live: Live) -> None:
    seeds = [httpx.post(live.url + CHAT, json=ASK).json()["redrafter"]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(set(str(seed)) <= set(string.digits) for seed in seeds)


def test_a_seed_that_was_told_can_be_asked_for_again(live: Live) -> None:
    asked: dict[str, dict[str, Any]] = {
        CHAT: ASK,
        "/v1/completions": {"prompt": "a"},
        "/v1/messages": {**ASK, "max_tokens": 9},
        "/v1/responses": {"input": "please say"},
    }
    for path, body in asked.items():
        made = httpx.post(live.url + path, json={**body, "seed": 7})
        assert made.json()["redrafter"]["seed"] == 7, path
