"""The texts of the prose target: running paragraphs of the same documentation."""

from __future__ import annotations

import importlib
import inspect
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

from .corpus import paragraphs, plain, strip_signature
from .sources import MODULES

HELD_OUT_SHARE = 8  # one document in so many is held out
MIN_WORDS = 8  # of a paragraph


def documents() -> Iterator[tuple[str, str]]:
    """(name, docstring) of every module, and of its public functions, classes and their methods."""
    seen: set[int] = set()

    def once(name: str, thing: Any) -> Iterator[tuple[str, str]]:
        doc = getattr(thing, "__doc__", None)
        if isinstance(doc, str) and zlib.crc32(doc.encode()) not in seen:
            seen.add(zlib.crc32(doc.encode()))
            yield name, doc

    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield from once(module_name, module)
        for name, thing in sorted(vars(module).items()):
            if name.startswith("_") or inspect.ismodule(thing):
                continue
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield from once(f"{module_name}.{name}", thing)
            if inspect.isclass(thing):
                for part, member in sorted(vars(thing).items()):
                    if not part.startswith("_"):
                        yield from once(f"{module_name}.{name}.{part}", member)


def prose_of(doc: str) -> list[str]:
    """Paragraphs of running text: whole sentences, no code, tables or lists."""
    found = []
    for block in paragraphs(strip_signature(doc)):
        text = plain(block)
        words = re.findall(r"[A-Za-z]{2,}", text)
        code = len(re.findall(r"[=<>{}\[\]_|\\*+/]", text))
        running = text.isascii() and text[-1] in ".!?" and "---" not in text
        if running and len(words) >= MIN_WORDS and code * 8 < len(words):
            found.append(text)
    return found


def build_prose() -> tuple[list[str], list[str]]:
    """(training, held-out) texts, one for each document; equal paragraphs are kept once."""
    seen: set[str] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for name, doc in documents():
        fresh = [text for text in prose_of(doc) if text not in seen]
        seen.update(fresh)
        if fresh:
            held_out = zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0
            parts[held_out].append("\n".join(fresh))
    return parts


def texts_to_ask(texts: list[str], count: int, seed: int) -> list[str]:
    """Held-out texts that are long enough to ask for their continuation."""
    long = [text for text in texts if len(text.split()) >= 30]
    return random.Random(seed).sample(long, min(count, len(long)))


def prompt_of(text: str) -> dict[str, str]:
    """The beginning of a text: its first eight words."""
    return {"prompt": " ".join(text.split()[:8])}
