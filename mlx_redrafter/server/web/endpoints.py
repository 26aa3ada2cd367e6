"""The handlers: parse, queue, write. Nothing is computed here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ... import __version__
from ..metrics import Metrics
from ..protocol import sse
from ..protocol.chat_answer import ChatWriter
from ..protocol.chat_request import parse_chat
from ..protocol.completions import CompletionWriter, parse_completion
from ..protocol.failures import Api, ApiError, internal
from ..protocol.json_body import parse_body
from ..protocol.messages_answer import MessagesWriter
from ..protocol.messages_request import parse_count, parse_messages
from ..protocol.responses_answer import ResponsesWriter
from ..protocol.responses_request import parse_responses
from ..protocol.task import Parsed
from ..protocol.writing import Envelope, Writer, new_id
from ..work.service import ServedModel, Service, is_long
from .bodies import api_of, read_body, refusal
from .streams import EventStream, whole

log = logging.getLogger("mlx_redrafter.server")

Made = TypeVar("Made")


@dataclass(frozen=True)
class Endpoint:
    """One way to ask for an answer.

    Attributes:
        parse: Body to request.
        writer: Makes what writes the answer.
        prefix: Of the answers' names.
        api: Whose forms it speaks.
        streams_refusals: Whether a stream that was asked for tells even of a prompt that is too
            long: Codex compacts its conversation on that event only.
    """

    parse: Callable[[dict[str, Any]], Parsed]
    writer: Callable[[Envelope, Parsed], Writer]
    prefix: str
    api: Api
    streams_refusals: bool = False


CHAT = Endpoint(parse_chat, ChatWriter, "chatcmpl-", "openai")
COMPLETIONS = Endpoint(parse_completion, CompletionWriter, "cmpl-", "openai")
RESPONSES = Endpoint(parse_responses, ResponsesWriter, "resp_", "openai", streams_refusals=True)
MESSAGES = Endpoint(parse_messages, MessagesWriter, "msg_", "anthropic")


class Handlers:
    """Answers requests.

    Args:
        service: Takes the work.
        metrics: Shown.
    """

    def __init__(self, service: Service, metrics: Metrics):
        self._service = service
        self._metrics = metrics
        self._long = {name: asyncio.Lock() for name in service.models}
        self._started = time.time()
        self._fingerprint = f"mlx_redrafter-{__version__}-mlx-{version('mlx')}"

    def endpoint(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The handler of an endpoint."""

        async def handler(request: Request) -> Response:
            return await _refusing(self._answer(endpoint, request), endpoint.api)

        return handler

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        raw = await read_body(request, self._service.settings.max_body)
        parsed, long = await run_in_threadpool(_understood, endpoint.parse, raw)
        model = self._service.model(parsed.model)
        envelope = Envelope(
            new_id(endpoint.prefix), int(time.time()), model.name, self._fingerprint
        )
        writer = endpoint.writer(envelope, parsed)
        answers = sum(task.count for task in parsed.tasks)
        try:
            with self._service.held(model, answers):
                jobs = await self._encoded(model, long, lambda: self._service.jobs(model, parsed))
                ticket = self._service.submit(model, jobs)
        except ApiError as error:
            tells = endpoint.streams_refusals and parsed.stream
            if tells and error.code == "context_length_exceeded":
                return _refused_stream(writer, error)
            raise
        if parsed.stream:
            return EventStream(ticket, writer, self._service.settings.keep_alive)
        return await whole(request, ticket, writer, endpoint.api)

    async def count_tokens(self, request: Request) -> Response:
        """Anthropic's ``count_tokens``."""
        return await _refusing(self._counted(request), "anthropic")

    async def _counted(self, request: Request) -> Response:
        raw = await read_body(request, self._service.settings.max_body)
        parsed, long = await run_in_threadpool(_understood, parse_count, raw)
        model, (task,) = self._service.model(parsed.model), parsed.tasks
        tokens = await self._encoded(model, long, lambda: self._service.tokens(model, task))
        return JSONResponse({"input_tokens": tokens})

    async def _encoded(self, model: ServedModel, long: bool, encode: Callable[[], Made]) -> Made:
        """What is made of prompts, in another thread.

        Long prompts are encoded one after the other, and wait here for their turn: of the threads
        that there are they would soon hold all.
        """
        if not long:
            return await run_in_threadpool(encode)
        async with self._long[model.name]:
            return await run_in_threadpool(encode)

    async def models(self, request: Request) -> Response:
        """The models that are served, in the form of the API that asks."""
        served = list(self._service.models.values())
        if api_of(request.url.path, request.headers) == "anthropic":
            entries = [self._anthropic_model(model) for model in served]
            ends = {"first_id": served[0].name, "last_id": served[-1].name}
            return JSONResponse({"data": entries, "has_more": False, **ends})
        return JSONResponse({"object": "list", "data": [self._model(model) for model in served]})

    async def one_model(self, request: Request) -> Response:
        """One model; all of them where the path ends before a name."""
        if not request.path_params["name"]:
            return await self.models(request)
        api = api_of(request.url.path, request.headers)
        try:
            model = self._service.model(request.path_params["name"])
        except ApiError as error:
            return refusal(error, api)
        form = self._anthropic_model if api == "anthropic" else self._model
        return JSONResponse(form(model))

    def _model(self, model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": int(self._started),
            "owned_by": "mlx_redrafter",
            "max_model_len": model.context_limit,
        }

    def _anthropic_model(self, model: ServedModel) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started))
        return {
            "type": "model",
            "id": model.name,
            "display_name": model.name,
            "created_at": stamp,
            "lifecycle": "active",
            "max_input_tokens": model.context_limit,
            "max_tokens": model.context_limit,
        }

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """Whether the engine works."""
        if self._service.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the engine has ended"}, 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """Counters for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._metrics.text(), headers={"Content-Type": kind})

    async def status(self, request: Request) -> Response:  # noqa: ARG002
        """What the page shows of the engine."""
        sample = self._metrics.registry.get_sample_value
        models = [
            {
                "name": name,
                "context_limit": model.context_limit,
                "guesses": model.guesses,
                "copies": model.copies,
                "running": sample("redrafter_running_sequences", {"model": name}) or 0,
                "waiting": sample("redrafter_waiting_sequences", {"model": name}) or 0,
                "cache_bytes": sample("redrafter_prefix_cache_bytes", {"model": name}) or 0,
            }
            for name, model in self._service.models.items()
        ]
        most = self._service.settings.max_concurrent * len(models)
        return JSONResponse({"models": models, "max_concurrent": most, "version": __version__})


def _understood(parse: Callable[[dict[str, Any]], Parsed], raw: bytes) -> tuple[Parsed, bool]:
    """A request, and whether one of its prompts is long."""
    parsed = parse(parse_body(raw))
    return parsed, is_long(parsed)


async def _refusing(answer: Awaitable[Response], api: Api) -> Response:
    """The answer, or why there is none.

    What nobody foresaw must not reach uvicorn: it would end the connection behind the answer, and
    with it the request that the client sends there next.
    """
    try:
        return await answer
    except ApiError as error:
        return refusal(error, api)
    except Exception:
        log.exception("a request failed")
        return refusal(internal(), api)


def _refused_stream(writer: Writer, error: ApiError) -> Response:
    assert isinstance(writer, ResponsesWriter)
    parts = [*writer.opening(), writer.failed(error)]
    return StreamingResponse(iter(parts), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
