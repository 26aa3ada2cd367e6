"""The command line of ``python -m mlx_redrafter.server``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from ...errors import RedrafterError
from ..ending import ENDS, signals
from ..entry import INTERRUPTED, SUCCESS, command_line, told_once
from ..flags import compared
from ..opening import prepare
from ..output import complain, write
from ..together import started_alike
from .serve_flags import NAME, ServeFlags, read_flags

if TYPE_CHECKING:
    import socket

    from ...server.settings import ServerSettings

MISSING = (
    "The server needs Starlette, uvicorn, pydantic and prometheus-client: "
    "pip install 'mlx-redrafter[server]'."
)


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Serve; returns the exit code."""
    with told_once():
        options = read_flags(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    return _run(options)


def _run(options: ServeFlags) -> int:
    try:
        from ...server.loading import check_names, follow_server, load_models
        from ...server.metrics import Metrics
        from ...server.running import bind, serve
        from ..quiet import quiet_libraries
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mlx_redrafter":
            raise
        raise RedrafterError(MISSING) from error
    if not options.verbose:
        quiet_libraries()
    settings = options.settings()
    with told_once():
        specs = options.specs()
        check_names(specs)  # before a file is converted, and before it is said that they load
    names = [spec.name for spec in specs]
    ranks = started_alike(NAME, {**compared(options), "--model": names})
    if ranks is not None and not ranks.leads:
        for number in signals(("SIGINT", *ENDS)):
            signal.signal(number, signal.SIG_IGN)  # rank 0 decides when all end
        for spec in specs:
            prepare(spec.path, options.revision)
        follow_server(specs, settings, ranks)
        return SUCCESS
    _warn(settings)
    listener = bind(settings)
    for spec in specs:
        prepare(spec.path, options.revision)
    measured = " (the first time, what drafting costs here is measured too)" if options.plan else ""
    _say(f"Loading {', '.join(names)}{measured} ...")
    metrics = Metrics()
    with _interrupted_at_once():
        thread, models = load_models(specs, settings, metrics)
        stopped = serve(
            listener, thread, models, settings, metrics, lambda: _announce(listener, list(models))
        )
        complain("Stopped.")  # whether or not the terminal is there still
        code = INTERRUPTED if stopped.interrupted else SUCCESS
        if not stopped.engine_ended:
            _end_without_the_engine(code)
    return code


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Inside the block, while the engine's thread is at work, Ctrl-C ends the process."""
    try:
        yield
    except KeyboardInterrupt:
        _end_without_the_engine(INTERRUPTED)


def _end_without_the_engine(code: int) -> NoReturn:
    """End here: Python would take the engine's thread down in the middle of mlx, which aborts."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def _say(text: str) -> None:
    write(text + "\n", errors=True)


def _announce(listener: socket.socket, names: list[str]) -> None:
    from ...server.running import address_of

    address = address_of(listener)
    _say(f"Serving {', '.join(names)}")
    _say(f"  page       {address}/")
    _say(f"  OpenAI     {address}/v1")
    _say(f"  Anthropic  {address}")


def _warn(settings: ServerSettings) -> None:
    from ...server.web.security import is_loopback

    if settings.api_key is None and not is_loopback(settings.host):
        _say(
            f"Warning: {settings.host} is reachable from other machines and no --api-key is set: "
            "whoever reaches it can use it."
        )
