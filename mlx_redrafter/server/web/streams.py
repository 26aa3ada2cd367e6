"""Answers on their way out: as a stream of events, or whole; stopped when nobody listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..protocol import sse
from ..protocol.answer import Answer, Event, Failed, Finished
from ..protocol.failures import Api, internal
from ..protocol.writing import Writer
from ..work.service import Ticket
from .bodies import refusal

log = logging.getLogger("mlx_redrafter.server")


class EventStream(StreamingResponse):
    """A stream of server-sent events.

    Args:
        ticket: The answers; closed however the stream ends.
        writer: Of the API.
        keep_alive: Seconds of silence, after which the stream says that it lives.
    """

    def __init__(self, ticket: Ticket, writer: Writer, keep_alive: float):
        self._ticket = ticket
        self._writer = writer
        self._keep_alive = keep_alive
        super().__init__(self._events(), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; a client that leaves, or a server that stops, cancels this."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.close()

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts():
                yield part
        except Exception:  # the status has gone out: what went wrong can only be told in the stream
            log.exception("an answer could not be written")
            for part in self._writer.feed(Failed(0, internal())):
                yield part

    async def _parts(self) -> AsyncIterator[bytes]:
        answers = [Answer() for _ in self._ticket.jobs]
        for part in self._writer.opening():
            yield part
        while True:
            try:
                events = await asyncio.wait_for(self._ticket.next(), self._keep_alive)
            except TimeoutError:
                yield self._writer.keep_alive
                continue
            written = b"".join(part for event in events for part in self._writer.feed(event))
            if written:
                yield written
            if any(isinstance(event, Failed) for event in events):
                return
            if take(answers, events):
                break
        for part in self._writer.closing(answers):
            yield part


async def whole(request: Request, ticket: Ticket, writer: Writer, api: Api) -> Response:
    """The whole answer, once it is there; or nothing, if the client leaves."""
    finished = False
    gone = asyncio.create_task(_gone(request))
    try:
        answers = [Answer() for _ in ticket.jobs]
        while not finished:
            coming = asyncio.create_task(ticket.next())
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return Response(status_code=499)  # nobody reads it
            events = coming.result()
            error = next((event.error for event in events if isinstance(event, Failed)), None)
            if error is not None:
                return refusal(error, api)
            finished = take(answers, events)
        return JSONResponse(writer.body(answers))
    finally:
        gone.cancel()
        ticket.close()


def take(answers: list[Answer], events: list[Event]) -> bool:
    """Add events to the answers; returns whether all of these have ended."""
    for event in events:
        answers[event.index].add(event)
    ended = any(isinstance(event, Finished) for event in events)
    return ended and all(answer.finished is not None for answer in answers)


async def _gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
