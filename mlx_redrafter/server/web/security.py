"""Who may ask: names of this machine, keys and origins."""

from __future__ import annotations

import hmac
import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..protocol.failures import ApiError
from .bodies import api_of, refusal
from .page_files import PAGE_FILES

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
# What is served without a key: the page, which asks for it, and whether the server lives.
OPEN = frozenset({*PAGE_FILES, "/health"})


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own only."""
    return host in LOOPBACK or host.startswith("127.")


def known_hosts(host: str, further: Sequence[str]) -> list[str]:
    """The names under which this server may be called.

    A page of another site whose name resolves to this machine carries that name in its requests,
    and is turned away. "*" among the further names allows all.
    """
    names = [*LOOPBACK, *further]
    if host in EVERYWHERE:
        own = socket.gethostname()
        names += [own, f"{own}.local"]
    else:
        names.append(host)
    bare = {name.lower().strip("[]") for name in names}
    return ["*"] if "*" in bare else sorted(f"[{name}]" if ":" in name else name for name in bare)


def is_address(host: str) -> bool:
    """Whether a Host header calls a machine by an address, which no site's name can pass for."""
    found = _ADDRESS.fullmatch(host)
    try:
        return found is not None and not ip_address(found[1] or found[2]).is_unspecified
    except ValueError:
        return False


class HostCheck:
    """Turns requests away that call this machine by a name that is not its own.

    Starlette's check, with a refusal in the API's own form.

    Args:
        app: What follows.
        allowed: From :func:`known_hosts`.
        addresses: Whether it may be called by any address: who listens everywhere does not know
            all of its own.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], *, addresses: bool = False):
        self._app = app
        self._allowed = list(allowed)
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        headers = Headers(scope=scope)
        passed = self._addresses and is_address(headers.get("host", ""))

        async def following(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
            nonlocal passed
            passed = True

        async def unsent(message: Message) -> None:
            """Leave Starlette's own refusal, which is plain text."""

        if not passed:
            check = TrustedHostMiddleware(following, self._allowed, www_redirect=False)
            await check(scope, receive, unsent)
        if passed:
            await self._app(scope, receive, send)
        else:
            await refusal(_unknown_name(), api_of(scope["path"], headers))(scope, receive, send)


def _unknown_name() -> ApiError:
    return ApiError(
        400,
        "This server is not known by the name in the Host header: call it by 127.0.0.1, or start "
        "it with --allowed-host NAME.",
        code="unknown_host",
    )


def _wrong_key() -> ApiError:
    return ApiError(
        401,
        "The API key is missing or wrong: send the server's as Authorization: Bearer KEY, or as "
        "x-api-key.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


class KeyCheck:
    """Lets requests through that show the key, and come from no foreign web page.

    Args:
        app: What follows.
        key: The key; None for none.
        origins: Origins that are allowed besides the server's own.
    """

    def __init__(self, app: ASGIApp, key: str | None, origins: Sequence[str] = ()):
        self._app = app
        self._key = key.encode("utf-8") if key is not None else None
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refuse(scope["path"], headers)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refusal(error, api_of(scope["path"], headers))(scope, receive, send)

    def _refuse(self, path: str, headers: Headers) -> ApiError | None:
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, headers.get("host", "")):
            return ApiError(
                403,
                "Web pages of other origins may not call this server: start it with "
                "--allowed-origin ORIGIN to let one.",
            )
        if self._key is None or path in OPEN:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        shown = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(shown.strip().encode("latin-1"), self._key):
            return None
        return _wrong_key()

    def _allows(self, origin: str, host: str) -> bool:
        own = origin in (f"http://{host}", f"https://{host}")
        return own or origin in self._origins or "*" in self._origins
