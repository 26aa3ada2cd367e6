"""What README and docs tell people to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "models").glob("**/README.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of each block in a language."""
    found = []
    for page in PAGES:
        for kind, text in FENCE.findall(page.read_text("utf-8")):
            if kind == language:
                found.append((page.relative_to(ROOT).as_posix(), text))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each python command, of blocks and within sentences."""
    texts = [(page, line) for page, text in blocks("sh") for line in joined(text)]
    for page in PAGES:
        prose = FENCE.sub("", page.read_text("utf-8"))
        name = page.relative_to(ROOT).as_posix()
        texts += [(name, code) for code in re.findall(r"`(python [^`\n]*)`", prose)]
    found = []
    for page, line in texts:
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "python":
                found.append((page, words[1:]))
    return found


def joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()
