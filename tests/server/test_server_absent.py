"""Paths and methods that are not served: what is missing is said, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from live_server import Live

MADE = {"model": "tiny", "input": "a"}


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/embeddings", "Embeddings are not served here"),
        ("POST", "/embeddings", "Embeddings are not served here"),
        ("POST", "/v1/images/generations", "Images are not served here"),
        ("POST", "/v1/audio/speech", "Audio files are not served here"),
        ("POST", "/v1/moderations", "Moderations are not served here"),
        ("POST", "/v1/rerank", "Rankings are not served here"),
        ("GET", "/v1/files", "Nothing is stored here"),
        ("POST", "/v1/batches", "Nothing is stored here"),
        ("GET", "/v1/responses/resp_1", "Nothing is stored here"),
        ("POST", "/v1/responses/resp_1/cancel", "Nothing is stored here"),
        ("GET", "/v1/chat/completions/chatcmpl-1", "Nothing is stored here"),
        ("GET", "/v1/messages/batches", "Nothing is stored here"),
        ("POST", "/v1/responses/input_tokens", "counted at /v1/messages/count_tokens"),
        ("POST", "/api/chat", "Ollama's API is not served here"),
        ("GET", "/api/tags", "Ollama's API is not served here"),
        ("POST", "/v1/v1/messages", "/v1 twice"),
        ("POST", "/v1/v1/chat/completions", "/v1 twice"),
        ("POST", "/completions", "served at /v1/completions"),
        ("GET", "/models", "served at /v1/models"),
        ("GET", "/v1", "There is nothing at this path"),
        ("GET", "/v1/chat", "There is nothing at this path"),
        ("GET", "/api/else", "There is nothing at this path"),
    ],
)
def test_what_is_not_served_is_called_so(live: Live, method: str, path: str, words: str) -> None:
    response = httpx.request(method, live.url + path)
    assert response.status_code == 404
    error = response.json()["error"]
    claude = path.startswith(("/v1/messages", "/v1/v1/messages"))
    assert error["type"] == ("not_found_error" if claude else "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda client: client.embeddings.create(**MADE), "Embeddings"),
        (lambda client: client.responses.retrieve("resp_1"), "Nothing is stored"),
        (lambda client: client.files.list(), "Nothing is stored"),
    ],
)
def test_openais_client_shows_the_sentence(
    live: Live, ask: Callable[[Any], Any], words: str
) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match=words):
        ask(client)


def test_a_base_url_with_v1_too_much_is_named_to_anthropics_client(live: Live) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    asked = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(anthropic.NotFoundError, match="leave it out of the client's base URL"):
        client.messages.create(**asked)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/complete", "There is nothing at this path"),
        ("/messages", "served at /v1/messages"),
        ("/v1/v1/messages", "/v1 twice"),
        ("/v1/v1/models", "/v1 twice"),
        ("/v1/files", "Nothing is stored here"),
    ],
)
def test_who_asks_in_anthropics_form_is_answered_in_it(live: Live, path: str, words: str) -> None:
    response = httpx.post(live.url + path, headers={"anthropic-version": "2023-06-01"})
    assert response.status_code == 404
    told = response.json()
    assert (told["type"], told["error"]["type"]) == ("error", "not_found_error")
    assert words in told["error"]["message"]
    assert told["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/v1/messages", "POST"),
        ("DELETE", "/v1/models/tiny", "GET or HEAD"),
        ("OPTIONS", "/health", "GET or HEAD"),
    ],
)
def test_a_method_that_is_not_taken_is_told_which_is(
    live: Live, method: str, path: str, allowed: str
) -> None:
    response = httpx.request(method, live.url + path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == set(allowed.split(" or "))
    assert f"use {allowed}." in response.text
    assert ("request_id" in response.json()) == path.startswith("/v1/messages")
