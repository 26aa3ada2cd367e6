"""What is answered when a request is refused or fails, in the form of the API it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Api = Literal["openai", "anthropic"]

# (OpenAI's type, Anthropic's type) of an HTTP status; the vendors' own words, read by clients.
_KINDS = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("invalid_request_error", "authentication_error"),
    403: ("invalid_request_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}


@dataclass
class ApiError(Exception):
    """A request that is refused or has failed.

    Attributes:
        status: HTTP status.
        message: One sentence for the person who uses the client.
        param: The field it is about, such as ``messages.0.content``; None where there is none.
        code: OpenAI's machine-readable word, such as ``context_length_exceeded``.
        headers: Further headers of the answer.
        details: What Anthropic's clients read instead of the message.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self, api: Api) -> dict[str, Any]:
        """The body of the answer, and what a stream says when it fails."""
        openai, anthropic = _KINDS.get(self.status, _KINDS[500])
        if api == "anthropic":
            named = self.param and not self.message.startswith(self.param)
            message = f"{self.param}: {self.message}" if named else self.message
            told = {"details": dict(self.details)} if self.details else {}
            return {"type": "error", "error": {"type": anthropic, "message": message, **told}}
        return {
            "error": {
                "message": self.message,
                "type": openai,
                "param": self.param,
                "code": self.code,
            }
        }


def unsupported(param: str, message: str) -> ApiError:
    """A field that means something, but not here."""
    return ApiError(400, message, param, "unsupported_value")


def no_threads() -> ApiError:
    """A conversation that the server is to hold, so that only new messages have to be sent.

    On these details Anthropic's tool runner, which asks for that first, sends whole conversations.
    """
    return ApiError(
        400,
        "thread is not supported here: leave it out, and send the whole conversation each time.",
        "thread",
        "unsupported_value",
        details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
    )


def no_stored_item(param: str) -> ApiError:
    """An item of an earlier answer, by the name under which others would have stored it."""
    return ApiError(
        400,
        f"{param}: 'item_reference' is not supported here, since nothing is stored: send the item "
        "itself, as most clients do with store set to false.",
        param,
        "unsupported_value",
    )


def too_long(tokens: int, limit: int) -> ApiError:
    """A prompt that leaves no room for an answer within ``limit`` tokens.

    In the words on which agents compact their conversation, by the difference of the two numbers.
    """
    return ApiError(
        400,
        f"prompt is too long: {tokens} tokens > {limit - 1} maximum. This model's maximum context "
        f"length is {limit} tokens, answer included: shorten the prompt.",
        code="context_length_exceeded",
    )


def queue_full(seconds: int) -> ApiError:
    """No more requests can wait."""
    return ApiError(
        429,
        f"The server is busy and its queue is full: try again in {seconds} s.",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def internal() -> ApiError:
    """A fault of the server's; what it was stands in its log only."""
    return ApiError(500, "The server failed at this request; its log says why.", code="internal")


def shutting_down() -> ApiError:
    """The server ends, and this request with it."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")
