"""The OpenAPI description, from the same models that check requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ... import __version__
from ..protocol.chat_request import ChatRequest
from ..protocol.completions import CompletionRequest
from ..protocol.messages_request import CountRequest, MessagesRequest
from ..protocol.responses_request import ResponsesRequest

_BODIES: tuple[tuple[str, type[BaseModel], str, bool], ...] = (
    ("/v1/chat/completions", ChatRequest, "Answer a conversation (OpenAI)", True),
    ("/v1/completions", CompletionRequest, "Go on from a text (OpenAI)", True),
    ("/v1/responses", ResponsesRequest, "Answer a conversation (OpenAI, stateless)", True),
    ("/v1/messages", MessagesRequest, "Answer a conversation (Anthropic)", True),
    ("/v1/messages/count_tokens", CountRequest, "Count a prompt's tokens (Anthropic)", False),
)
_REFUSALS = {
    "400": "the request is wrong, or asks for what is not supported",
    "401": "the key is missing or wrong",
    "403": "a web page of another origin asks",
    "404": "the model is not served",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is not declared as JSON",
    "429": "the queue is full; Retry-After says when to try again",
    "500": "the server failed at this request",
    "503": "the server is shutting down",
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


def describe() -> dict[str, Any]:
    """The description, OpenAPI 3.1."""
    models = [(model, "validation") for _, model, _, _ in _BODIES]
    _, schema = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {
        path: {"post": _post(model, summary, streams)} for path, model, summary, streams in _BODIES
    }
    paths["/v1/models"] = {"get": _get("The models that are served", "application/json")}
    paths["/health"] = {"get": _get("Whether the engine works", "application/json")}
    paths["/status"] = {"get": _get("What runs and waits", "application/json")}
    paths["/metrics"] = {"get": _get("Counters for Prometheus", "text/plain")}
    schemas = schema["$defs"] | {"Error": {"type": "object", "required": ["error"]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx_redrafter server", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _post(model: type[BaseModel], summary: str, streams: bool) -> dict[str, Any]:
    body = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "the answer", "content": content}, **_refusals()},
    }


def _get(summary: str, kind: str) -> dict[str, Any]:
    schema = {"type": "string"} if kind.startswith("text/") else {"type": "object"}
    good = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": good, **_refusals()}}


def _refusals() -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": error} for status, text in _REFUSALS.items()}
