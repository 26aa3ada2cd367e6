"""Reading requests and writing refusals."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from ..protocol.failures import Api, ApiError, shutting_down
from ..protocol.writing import new_id

BODY_SECONDS = 60.0


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Args:
        request: Whose.
        limit: Bytes at most.

    Raises:
        ApiError: 415 if it is not declared as JSON (which no form of a foreign web page can do),
            or is compressed (a small one could become a huge one); 413 if it is too large, 408 if
            it does not come, 503 if the server ends before (which cancels ``request.state.body``).
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body with Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "Send the body without Content-Encoding.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(BODY_SECONDS) as arriving:
            request.state.body = arriving
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, "The body did not arrive in time.") from error
    except ClientDisconnect as error:
        raise ApiError(400, "The client left before the body was complete.") from error
    if arriving.cancelled_caught:
        raise shutting_down()
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is too large: {limit} bytes are the most.")


def refusal(error: ApiError, api: Api) -> JSONResponse:
    """An error as an answer."""
    body = error.body(api)
    headers = dict(error.headers)
    if api == "anthropic":
        headers["request-id"] = body["request_id"] = new_id("req_")
    return JSONResponse(body, error.status, headers)


def api_of(path: str, headers: Mapping[str, str]) -> Api:
    """Whose forms a request speaks: Anthropic's clients name a version, at whichever path."""
    asks = path.removeprefix("/v1").startswith(("/messages", "/v1/messages"))
    return "anthropic" if asks or "anthropic-version" in headers else "openai"
