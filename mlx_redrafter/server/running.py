"""Start, serve, stop: uvicorn around the application, and the signals."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import RedrafterError
from .metrics import Metrics
from .settings import ServerSettings
from .web.app import make_app
from .work.engine_thread import EngineThread
from .work.service import ServedModel, Service

BACKLOG = 2048  # connections that wait to be taken
# Connections that are taken at a wake-up. Where the process may open no more files, asyncio logs
# each that it fails to take and tries as many again a second later, for each of them: more than one
# would become ever more, and fill the log.
TAKEN_AT_ONCE = 1


@dataclass(frozen=True)
class Stopped:
    """How serving came to its end.

    Attributes:
        engine_ended: Whether the engine has; else its thread is still at work, a long measurement
            say, and the process has to be ended without it.
        interrupted: Whether it was Ctrl-C that ended it.
    """

    engine_ended: bool
    interrupted: bool


def bind(settings: ServerSettings) -> socket.socket:
    """Take the address before models are loaded, so that a taken port costs no time.

    Raises:
        RedrafterError: If that is not possible.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = told.split(" (while ")[0]  # Python repeats the address
        raise RedrafterError(
            f"{settings.host}:{settings.port} cannot be listened at ({reason}): pass another "
            "--host or --port."
        ) from error


def address_of(listener: socket.socket) -> str:
    """The address to call, as a URL; where it listens everywhere, that of this machine itself."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    listener: socket.socket,
    thread: EngineThread,
    models: dict[str, ServedModel],
    settings: ServerSettings,
    metrics: Metrics,
    ready: Callable[[], None] = lambda: None,
) -> Stopped:
    """Serve until SIGTERM, SIGINT or SIGHUP, then let running answers finish for ``grace`` seconds.

    Args:
        listener: From :func:`bind`.
        thread: Started.
        models: By name, the default first.
        settings: All of them.
        metrics: Those that the hosts of the models count in.
        ready: Called once requests are taken.
    """
    app = make_app(Service(thread, models, settings), metrics)
    server = make_server(app, settings, ready, thread.end)
    # uvicorn raises the signal that ended it once more when it is done; then it is our end.
    before = signal.signal(signal.SIGTERM, _leave)
    interrupted = False
    try:
        with _hang_up_ends(server):
            server.run(sockets=[listener])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
        ended = thread.stop()
    return Stopped(ended, interrupted)


@contextmanager
def _hang_up_ends(server: uvicorn.Server) -> Iterator[None]:
    """Inside the block SIGHUP is SIGTERM to the server, unless nohup has it ignored."""
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    if number is None or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, lambda _number, frame: server.handle_exit(signal.SIGTERM, frame))
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


# Seconds in which the head of a request has to come, or its connection is closed: uvicorn waits
# for ever, and connections are as few as the files that a process may open.
HEAD_SECONDS = 15.0
# Seconds in which a client has to take some of what it is sent, or its connection is ended.
WRITE_SECONDS = 60.0
# Seconds for the step under way, behind which answers can be ended.
STEP_SECONDS = 5


class _Protocol(H11Protocol):
    """uvicorn's connection that is closed where no request comes, or no answer is taken."""

    _closing: asyncio.TimerHandle | None = None
    _ending: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever is not taken at once is watched
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that is answered has all the time that it needs."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._forget()
        self._forget_writing()

    def shutdown(self) -> None:
        """End: a request whose body has not come yet is not waited for."""
        super().shutdown()
        if not self._idle and self.cycle.more_body:
            arriving = self.scope["state"].get("body")
            if arriving is not None:
                arriving.cancel()

    def pause_writing(self) -> None:
        """Wait for the client to take what is there."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Go on: all of it was taken."""
        super().resume_writing()
        self._forget_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an offer of HTTP/2, as Java's client makes with each request, needs no
        other answer than HTTP/1.1's, and no package would let WebSockets in."""

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._ending = self.loop.call_later(WRITE_SECONDS, self._end)

    def _forget_writing(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _end(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_writing()  # it is slow
        else:
            self.transport.abort()  # closing would wait for it

    def _watch(self) -> None:
        if not self._idle:
            self._forget()
        elif self._closing is None:
            self._closing = self.loop.call_later(HEAD_SECONDS, self._close)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _forget(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self._closing = None
        if self._idle:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server that says when it is ready, and lets answers end with a word.

    Args:
        config: uvicorn's.
        ready: Called once requests are taken.
        grace: Seconds that running answers get once it is told to stop.
        abandon: Ends those that still run, each with an error.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        grace: float,
        abandon: Callable[[], None],
    ):
        super().__init__(config)
        self._ready = ready
        self._grace = grace
        self._abandon = abandon

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has let only as many wait as it takes at once
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; uvicorn alone would break off the answers that take too long."""
        ending = asyncio.get_running_loop().call_later(self._grace, self._abandon)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let answers finish; at a second signal end them."""
        if self.should_exit:
            self._abandon()
        else:
            super().handle_exit(sig, frame)


def make_server(
    app: object,
    settings: ServerSettings,
    ready: Callable[[], None] = lambda: None,
    abandon: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """uvicorn for an application; see :class:`_Server`."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http=_Protocol,
        ws="none",
        backlog=TAKEN_AT_ONCE,
        timeout_graceful_shutdown=math.ceil(settings.grace) + STEP_SECONDS,
    )
    return _Server(config, ready, settings.grace, abandon)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the server, not the process in the middle of its leave-taking."""
