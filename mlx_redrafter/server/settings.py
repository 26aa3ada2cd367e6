"""What the command line decides for the whole server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANSWER_TOKENS = 4096
CONTINUATION_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class ServerSettings:
    """How requests are served.

    Attributes:
        host: Address to listen at.
        port: Port; 0 takes a free one.
        api_key: What requests have to show; None for nothing.
        allowed_hosts: Names that the Host header may have besides those of this machine.
        allowed_origins: Web pages of other origins that may call the server.
        max_concurrent: Sequences of a model that are decoded together.
        max_queue: Answers of a model that may wait besides.
        cache_memory: Bytes for prefixes that are kept.
        max_tokens: Tokens of an answer where the request names no number; None for
            ``ANSWER_TOKENS``, or ``CONTINUATION_TOKENS`` where it goes on from a bare text.
        context_limit: Tokens of prompt and answer at most, in place of the model's own limit.
        prefill_step_size: Prompt tokens read between two steps.
        max_body: Bytes of a request at most.
        keep_alive: Seconds of silence in a stream, after which it says that it lives.
        grace: Seconds that running answers get when the server is told to stop.
        copies: Whether copies of the text are drafted too, where a request says nothing.
        sampling: Fields of SamplingConfig, where a request names none.
        template: Arguments of the chat template, where a request names none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_concurrent: int = 8
    max_queue: int = 64
    cache_memory: int = 2**30
    max_tokens: int | None = None
    context_limit: int | None = None
    prefill_step_size: int = 512
    max_body: int = 16 * 2**20
    keep_alive: float = 10.0
    grace: float = 10.0
    copies: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)
