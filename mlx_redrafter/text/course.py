"""Where an answer is that follows a schema, by its tokens: thoughts, a call's mark, or beyond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import RedrafterError
from .passages import ANSWER, THOUGHTS, first_kind

Stage = Literal["thinks", "begins", "marks", "calls", "answers"]


@dataclass(frozen=True)
class Course:
    """A place in such an answer.

    Attributes:
        stage: "thinks" to the end of the thoughts that the prompt has opened; then "begins", where
            a call may be marked, "marks" within that mark, and "calls" behind it; else "answers".
        thoughts_end: Tokens that end thoughts.
        call: Those that mark a call; none where none may be made.
        written: The last of the thoughts, as many as end them; or what is written of the mark.
    """

    stage: Stage
    thoughts_end: tuple[int, ...]
    call: tuple[int, ...] = ()
    written: tuple[int, ...] = ()

    @classmethod
    def begin(cls, tokenizer: Any, prompt: Sequence[int], *, calls: bool) -> Course:
        """Behind a prompt.

        Args:
            tokenizer: mlx-lm's.
            prompt: Token ids.
            calls: Whether the answer may be a tool call.

        Raises:
            RedrafterError: If the model's answers cannot be told from what it sets around them.
        """
        kind = first_kind(tokenizer, list(prompt))
        ends = tuple(getattr(tokenizer, "think_end_tokens", None) or ())
        if kind not in (ANSWER, THOUGHTS) or (kind == THOUGHTS and not ends):
            raise RedrafterError(
                "Answers of this model begin with a header of its own, so they cannot follow a "
                "schema."
            )
        return cls("thinks" if kind == THOUGHTS else "begins", ends, _mark(tokenizer, calls))

    def after(self, token: int) -> Course:
        """The place behind a token that may come here."""
        if self.stage == "thinks":
            written = (*self.written, token)[-len(self.thoughts_end) :]
            if written == self.thoughts_end:
                return replace(self, stage="begins", written=())
            return replace(self, written=written)
        if self.stage in ("calls", "answers"):
            return self
        mark = (*self.written, token)
        if not self.call or mark != self.call[: len(mark)]:
            return replace(self, stage="answers")
        return replace(self, stage="calls" if mark == self.call else "marks", written=mark)


def _mark(tokenizer: Any, calls: bool) -> tuple[int, ...]:
    tokens = tuple(getattr(tokenizer, "tool_call_start_tokens", None) or ()) if calls else ()
    if calls and not tokens:
        raise no_mark()
    return tokens


def no_mark() -> RedrafterError:
    """A model's calls cannot be told from JSON by their beginning."""
    return RedrafterError(
        "This model's tool calls begin with no mark of their own, so an answer cannot be either a "
        "call or JSON of a schema: give tools or the schema."
    )
