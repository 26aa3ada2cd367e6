"""The application: routes and what stands before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..metrics import Metrics
from ..protocol.failures import ApiError, internal
from ..work.service import Service
from .absent import said_of
from .bodies import api_of, refusal
from .description import describe
from .endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Handlers
from .page_files import PAGE_FILES, read_page
from .security import EVERYWHERE, HostCheck, KeyCheck, known_hosts

Handler = Callable[[Request], Awaitable[Response]]

# The page may load nothing but its own files, and talk to its own server only.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(service: Service, metrics: Metrics) -> Starlette:
    """The application for a service."""
    handlers = Handlers(service, metrics)
    settings = service.settings

    def post(path: str, handler: Handler) -> Route:
        return Route(path, handler, methods=["POST"])

    routes = [
        post("/v1/chat/completions", handlers.endpoint(CHAT)),
        post("/chat/completions", handlers.endpoint(CHAT)),  # mlx_lm.server has it, too
        post("/v1/completions", handlers.endpoint(COMPLETIONS)),
        post("/v1/responses", handlers.endpoint(RESPONSES)),
        post("/v1/messages", handlers.endpoint(MESSAGES)),
        post("/v1/messages/count_tokens", handlers.count_tokens),
        Route("/v1/models", handlers.models),
        Route("/v1/models/{name:path}", handlers.one_model),
        Route("/health", handlers.health),
        Route("/metrics", handlers.metrics),
        Route("/status", handlers.status),
        Route("/openapi.json", _description),
        *(Route(path, _file(path)) for path in PAGE_FILES),
    ]
    hosts = known_hosts(settings.host, settings.allowed_hosts)
    anywhere = settings.host in EVERYWHERE
    middleware = [Middleware(HostCheck, allowed=hosts, addresses=anywhere)]
    if settings.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.allowed_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                # Before a public page reaches a private network Chrome asks whether it may.
                allow_private_network=True,
                expose_headers=["Retry-After", "request-id"],
            )
        )
    middleware.append(Middleware(KeyCheck, key=settings.api_key, origins=settings.allowed_origins))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


def _file(path: str) -> Handler:
    content, kind = read_page(path)

    async def handler(request: Request) -> Response:  # noqa: ARG001
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    return handler


async def _description(request: Request) -> Response:  # noqa: ARG001
    return JSONResponse(describe())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    message = str(error.detail)
    if error.status_code == 404:
        message = said_of(request.url.path)
    elif error.status_code == 405:
        methods = " or ".join(sorted(headers["Allow"].split(", ")))
        message = f"This path does not take this method: use {methods}."
    made = ApiError(error.status_code, message, headers=headers)
    return refusal(made, api_of(request.url.path, request.headers))


async def _failed(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return refusal(internal(), api_of(request.url.path, request.headers))
