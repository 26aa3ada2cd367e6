"""Text from files, models and people made harmless to show.

A terminal takes control characters for orders, and a right-to-left override rearranges what stands
beside it; so whatever is printed goes through here.
"""

from __future__ import annotations

import json
import re
from typing import Any

_NEWLINE, _TAB = "\n", "\t"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Overrides, embeddings and isolates; the plain marks LRM, RLM and ALM only touch their neighbours.
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SEPARATORS = (0x2028, 0x2029)
_SURROGATES = range(0xD800, 0xE000)
# Bytes 0x80 to 0x9F are orders to an 8-bit terminal.
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys(_BIDI, _REPLACEMENT),
    **dict.fromkeys(_SURROGATES, _REPLACEMENT),
    **dict.fromkeys(_SEPARATORS, _NEWLINE),
    0x7F: "\N{SYMBOL FOR DELETE}",
    0x85: _NEWLINE,
    ord("\r"): None,
    ord(_NEWLINE): _NEWLINE,
    ord(_TAB): _TAB,
}
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def visible(text: str) -> str:
    """``text`` with everything that steers a terminal shown as a picture of itself.

    Newlines and tabs stay; a carriage return goes, since lines end in one in many files.
    """
    return text.translate(_PICTURES) if _HIDDEN.search(text) else text


def visible_line(text: str, limit: int | None = None) -> str:
    """``text`` as one line: runs of white space become one space.

    Args:
        text: Any text.
        limit: Longest result; a longer one is cut in its middle.
    """
    line = " ".join(visible(text).split())
    if limit is None or len(line) <= limit:
        return line
    head = (limit - 5) * 2 // 3
    return f"{line[:head]} ... {line[head + 5 - limit :]}"


def visible_json(value: Any) -> str:
    """``value`` as JSON in which nothing steers a terminal: such characters are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _HIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def whole_characters(text: str) -> str:
    """``text`` without halves of characters (lone surrogates), which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
