"""A reasoning model's thoughts, told apart from its answer by the tokenizer's own markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Passage:
    """A piece of an answer.

    Attributes:
        text: What it says, without markers.
        thought: Whether it is part of the thoughts.
    """

    text: str
    thought: bool


def begins_thinking(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends inside thoughts, as templates leave it that open them themselves.

    Args:
        tokenizer: mlx-lm's, which knows the markers.
        prompt: Token ids.
    """
    if not getattr(tokenizer, "has_thinking", False):
        return False
    tokens = list(prompt)
    opened = tokenizer.rfind_think_start(tokens)
    return opened != -1 and tokenizer.rfind_think_end(tokens) < opened


class ThoughtSplitter:
    """Takes an answer's text in pieces and gives it out as passages.

    Text that may still turn out to be a marker is held back.

    Args:
        start: Marker before thoughts, None for a model that has none.
        end: Marker after them.
        thinking: Whether the text begins inside thoughts.
    """

    def __init__(self, start: str | None, end: str | None, thinking: bool = False):
        self._markers = (start, end) if start and end else None
        self.thinking = thinking and self._markers is not None
        self._held = ""

    @classmethod
    def of(cls, tokenizer: Any, prompt: Sequence[int]) -> ThoughtSplitter:
        """For the answer to a prompt."""
        if not getattr(tokenizer, "has_thinking", False):
            return cls(None, None)
        return cls(tokenizer.think_start, tokenizer.think_end, begins_thinking(tokenizer, prompt))

    def feed(self, text: str) -> list[Passage]:
        """Take a piece; return the passages that are certain."""
        text = self._held + text
        self._held = ""
        if self._markers is None:
            return [Passage(text, False)] if text else []
        passages: list[Passage] = []
        while (at := text.find(marker := self._markers[self.thinking])) != -1:
            passages.append(Passage(text[:at], self.thinking))
            text = text[at + len(marker) :]
            self.thinking = not self.thinking
        keep = _beginning_of(marker, text)
        self._held = text[len(text) - keep :]
        passages.append(Passage(text[: len(text) - keep], self.thinking))
        return [passage for passage in passages if passage.text]

    def flush(self) -> list[Passage]:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return [Passage(text, self.thinking)] if text else []


def _beginning_of(marker: str, text: str) -> int:
    """Length of the longest end of ``text`` that begins ``marker``."""
    longest = min(len(text), len(marker) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(marker[:n]))


def split_thoughts(tokenizer: Any, prompt: Sequence[int], text: str) -> tuple[str, str]:
    """A whole answer as (thoughts, answer), both stripped of the space around them."""
    splitter = ThoughtSplitter.of(tokenizer, prompt)
    passages = [*splitter.feed(text), *splitter.flush()]
    thoughts = "".join(one.text for one in passages if one.thought)
    answer = "".join(one.text for one in passages if not one.thought)
    return thoughts.strip(), answer.strip() if thoughts else answer
