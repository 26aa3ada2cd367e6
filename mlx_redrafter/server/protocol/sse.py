"""Server-sent events as bytes (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# A comment: proxies and clients see that the connection lives, and readers of events skip it.
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "text/event-stream"
# Line breaks to Python's ``splitlines``, by which many clients part a stream, but not to JSON.
_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; line breaks are escaped, so its data is one line."""
    lead = f"event: {name}\n" if name else ""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).translate(_BREAKS)
    return f"{lead}data: {text}\n\n".encode()


def progress(done: int, total: int) -> bytes:
    """A comment that says how far a prompt has been read."""
    return f": prompt {done}/{total}\n\n".encode()
