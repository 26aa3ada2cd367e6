"""The bytes of tokens: a character may take several tokens, none of which is text by itself."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from functools import cache

UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for a part of a character
_SENTENCEPIECE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of(text: str, entry: str | None) -> bytes:
    """The bytes of a token.

    Args:
        text: What its decoder makes of it.
        entry: How the vocabulary writes it; None where it does not.
    """
    if UNREADABLE not in text or entry is None:
        return text.encode("utf-8")
    found = _SENTENCEPIECE.fullmatch(entry)
    if found:
        return bytes.fromhex(found[1])
    letters = _byte_letters()
    if all(letter in letters for letter in entry):
        return bytes(letters[letter] for letter in entry)
    return text.encode("utf-8")


def ends_within(text: bytes) -> bool:
    """Whether a text ends with a part of a character."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


@cache
def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level vocabularies write each byte, as GPT-2's did first.

    Those that can be seen in Latin-1 stand for themselves, the others follow behind it in order.
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): b for n, b in enumerate(hidden)}
