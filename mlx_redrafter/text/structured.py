"""Answers that follow a JSON schema: llguidance says which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError
from ..tree import BoolArray, HostTree
from .course import Course, no_mark
from .grammars import grammars_of, trouble
from .tokenizers import wrapped


class JsonAnswer:
    """A constraint that lets one text's answer be nothing but JSON of a schema.

    What the model thinks before it, where the prompt has opened thoughts, is free but for its end;
    so is all that follows the mark of a tool call, if calls are allowed. Where the schema can lead
    no further, the text fails.

    Args:
        tokenizer: mlx-lm's.
        schema: A JSON schema, as JSON; see :func:`~.json_schemas.checked_schema`.
        calls: Whether the answer may be a tool call instead.

    Raises:
        RedrafterError: If the schema or the tokenizer is none that llguidance can follow.
    """

    def __init__(self, tokenizer: TokenizerWrapper, schema: str, *, calls: bool = False):
        tokenizer = wrapped(tokenizer)
        matcher = prepare(tokenizer, schema)
        self._tokenizer, self._calls = tokenizer, calls
        course = Course.begin(tokenizer, [], calls=calls)
        if course.call and matcher.validate_tokens(list(course.call[:1])):
            raise no_mark()
        self._place = _Place(matcher, tuple(sorted(tokenizer.eos_token_ids)), course)
        self._seen = 0  # tokens of the text that were followed

    def allowed(self, text: Sequence[int], tree: HostTree, vocab_size: int) -> BoolArray:
        """Which tokens may follow each node, bool (n, vocab_size); see ``Constraint``."""
        self._follow(text, tree.tokens[0])
        rows = np.ones((len(tree.tokens), vocab_size), dtype=np.bool_)
        self._place.mark(rows[0])
        places = {0: self._place}
        for node in range(1, len(tree.tokens)):
            token, parent = tree.tokens[node], tree.parents[node]
            if parent in places and rows[parent, token]:
                places[node] = places[parent].after(token)
                places[node].mark(rows[node])
        return rows

    def failure(self, text: Sequence[int]) -> RedrafterError | None:
        """Why nothing may follow a text; see ``Constraint``."""
        place = self._place
        for token in text[self._seen :]:
            place = place.after(token)
        why = place.trouble()
        if why is None:
            return None
        return RedrafterError(
            f"The answer cannot go on by its JSON schema, since {why}: make the schema simpler."
        )

    def _follow(self, text: Sequence[int], root: int) -> None:
        """Go on to the end of the text; nowhere where a step is taken again."""
        if not self._seen:
            course = Course.begin(self._tokenizer, [*text, root], calls=self._calls)
            self._place = replace(self._place, course=course)
        elif len(text) >= self._seen:
            for token in (*text[self._seen :], root):
                self._place = self._place.after(token)
        self._seen = len(text) + 1


@dataclass(frozen=True)
class _Place:
    """A place in a text or in a draft of it.

    Attributes:
        matcher: llguidance's, which has followed what is JSON; never moved.
        ends: Tokens that end a text.
        course: What is being written.
    """

    matcher: Any
    ends: tuple[int, ...]
    course: Course

    def after(self, token: int) -> _Place:
        """The place behind a token that is allowed here."""
        course = self.course.after(token)
        if course.stage != "answers" or token in self.ends:
            return replace(self, course=course)
        matcher = self.matcher.deep_copy()
        matcher.consume_token(token)
        return replace(self, course=course, matcher=matcher)

    def mark(self, row: BoolArray) -> None:
        """Set a row to which tokens may come next, bool (vocab_size,)."""
        course = self.course
        if course.stage == "calls":
            row[:] = True
            return
        row[:] = course.stage == "thinks"
        if course.stage in ("begins", "answers"):
            self._mark_json(row)
        else:
            _set(row, self.ends, False)
        if course.stage in ("begins", "marks"):
            _set(row, course.call[len(course.written) :][:1], True)

    def _mark_json(self, row: BoolArray) -> None:
        if not self.matcher.is_stopped():
            bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
            known = np.unpackbits(bits, bitorder="little")[: len(row)]
            row[: len(known)] = known
        if self.matcher.is_error():
            row[:] = False
        else:
            _set(row, self.ends, self.matcher.is_accepting())

    def trouble(self) -> str | None:
        """Why no token may come next; None where one may."""
        if self.course.stage not in ("begins", "answers"):
            return None
        matcher = self.matcher.deep_copy()
        if not matcher.is_stopped():
            matcher.compute_bitmask()
        return trouble(matcher) if matcher.is_error() else None


def _set(row: BoolArray, tokens: Sequence[int], value: bool) -> None:
    row[[token for token in tokens if token < len(row)]] = value


def prepare(tokenizer: TokenizerWrapper, schema: str, name: str = "json_schema") -> Any:
    """Compile a schema for a tokenizer, which takes a second the first time.

    Args:
        tokenizer: mlx-lm's.
        schema: As JSON; see :func:`~.json_schemas.checked_schema`.
        name: What it is called in errors.

    Returns:
        llguidance's matcher, before the first token; the caller's own.

    Raises:
        RedrafterError: As for :class:`JsonAnswer`.
    """
    tokenizer = wrapped(tokenizer)
    ends = tuple(sorted(tokenizer.eos_token_ids))
    if not ends:
        raise RedrafterError("The tokenizer names no end of text, so no JSON could be complete.")
    Course.begin(tokenizer, [], calls=False)
    # Of transformers' tokenizers wrappers are made anew for every call.
    return grammars_of(tokenizer._tokenizer, ends).start(schema, name)
