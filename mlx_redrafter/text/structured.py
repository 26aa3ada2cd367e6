"""Answers that follow a JSON schema: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError
from ..ranges import of_kind
from ..tree import BoolArray, HostTree
from .passages import ANSWER, THOUGHTS, first_kind
from .tokenizers import wrapped

# Between JSON's tokens: models break lines and indent, and some would never stop to.
WHITESPACE = r"[ \n]{0,16}"
MISSING = "Answers that follow a JSON schema need llguidance: pip install llguidance."


class JsonAnswer:
    """A constraint that lets one text's answer be nothing but JSON of a schema.

    What the model thinks before it, where the prompt has opened thoughts, is free; so is all that
    follows the beginning of a tool call, if calls are allowed. Where the schema can lead no
    further, the text ends.

    Args:
        tokenizer: mlx-lm's.
        schema: A JSON schema, as JSON; see :func:`checked_schema`.
        calls: Whether the answer may be a tool call instead.

    Raises:
        RedrafterError: If the schema or the tokenizer is none that llguidance can follow.
    """

    def __init__(self, tokenizer: TokenizerWrapper, schema: str, *, calls: bool = False):
        self._tokenizer = tokenizer
        self._place = _Place(
            _matcher(tokenizer, schema),
            ends=tuple(sorted(tokenizer.eos_token_ids)),
            calls=_call_starts(tokenizer) if calls else (),
            thoughts_end=tuple(getattr(tokenizer, "think_end_tokens", None) or ()),
        )
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

    def _follow(self, text: Sequence[int], root: int) -> None:
        """Go on to the end of the text; nowhere where a step is taken again."""
        if not self._seen:
            if first_kind(self._tokenizer, [*text, root]) == THOUGHTS:
                self._place = replace(self._place, free=True)
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
        calls: Tokens with which it may be a tool call instead.
        thoughts_end: Those that end thoughts.
        free: Whether anything may follow, as in thoughts and calls.
        begun: Whether the answer has begun.
        last: What was thought last, as many tokens as end thoughts.
    """

    matcher: Any
    ends: tuple[int, ...]
    calls: tuple[int, ...]
    thoughts_end: tuple[int, ...]
    free: bool = False
    begun: bool = False
    last: tuple[int, ...] = ()

    def after(self, token: int) -> _Place:
        """The place behind a token that is allowed here."""
        if self.free and self.begun:  # a call, to its end
            return self
        if self.free:
            last = (*self.last, token)[-len(self.thoughts_end) :]
            return replace(self, free=last != self.thoughts_end, last=last)
        matcher = self.matcher.deep_copy()
        if not self.begun and token in self.calls and not matcher.validate_tokens([token]):
            return replace(self, free=True, begun=True)
        if token not in self.ends:
            matcher.consume_token(token)
        return replace(self, matcher=matcher, begun=True)

    def mark(self, row: BoolArray) -> None:
        """Set a row to which tokens may come next, bool (vocab_size,)."""
        if self.free:
            row[:] = True
            return
        row[:] = False
        ends = [token for token in self.ends if token < len(row)]
        if self.matcher.is_stopped() or self.matcher.is_error():
            row[ends] = True
            return
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(bits, bitorder="little")[: len(row)]
        row[: len(known)] = known
        row[ends] = self.matcher.is_accepting() or not row.any()
        if not self.begun:
            row[list(self.calls)] = True


def checked_schema(schema: Any, name: str = "json_schema") -> str:
    """A JSON schema as JSON.

    Args:
        schema: A mapping; an empty one is any JSON value.
        name: What it is called in errors.

    Raises:
        RedrafterError: If it is none, or asks for what cannot be enforced.
    """
    of_kind(schema, name, Mapping, "a JSON schema as a mapping, such as {'type': 'object'}")
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise RedrafterError(f"{name} cannot be written as JSON ({error}).") from error
    guidance = _llguidance()
    _, faults = guidance.LLMatcher.validate_grammar_with_warnings(_grammar(text))
    if faults:  # what is only warned of would not be enforced
        reason = " ".join(" ".join(faults).split()).rstrip(".")
        raise RedrafterError(f"{name} cannot be followed: {reason}.")
    return text


def prepare(tokenizer: TokenizerWrapper, schema: str) -> None:
    """Compile a schema for a tokenizer, which takes a second the first time.

    Raises:
        RedrafterError: As for :class:`JsonAnswer`.
    """
    _matcher(tokenizer, schema)


def _grammar(schema: str) -> str:
    grammar: str = _llguidance().LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
    )
    return grammar


def _matcher(tokenizer: TokenizerWrapper, schema: str) -> Any:
    """What follows a text along a schema, as it stands before the first token."""
    tokenizer = wrapped(tokenizer)
    if not tokenizer.eos_token_ids:
        raise RedrafterError("The tokenizer names no end of text, so no JSON could be complete.")
    if first_kind(tokenizer, []) not in (ANSWER, THOUGHTS):
        raise RedrafterError(
            "Answers of this model begin with a header of its own, so they cannot follow a schema."
        )
    # Of transformers' tokenizers wrappers are made anew for every call.
    ends = tuple(sorted(tokenizer.eos_token_ids))
    return _compiled(tokenizer._tokenizer, ends, schema).deep_copy()


@lru_cache(maxsize=64)  # requests repeat their schema; no text moves this one
def _compiled(tokenizer: Any, ends: tuple[int, ...], schema: str) -> Any:
    vocabulary = _vocabulary(tokenizer, ends)
    matcher = _llguidance().LLMatcher(vocabulary, _grammar(schema), log_level=0)
    if matcher.is_error():
        raise RedrafterError(f"The schema cannot be followed: {matcher.get_error():.200}.")
    return matcher


@lru_cache(maxsize=4)  # made in a second, and the same for every text of a model
def _vocabulary(tokenizer: Any, ends: tuple[int, ...]) -> Any:
    _llguidance()
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=list(ends))
    except (ValueError, AttributeError, TypeError) as error:
        raise RedrafterError(
            f"This model's tokenizer cannot be followed by llguidance ({error!s:.200})."
        ) from error


def _call_starts(tokenizer: TokenizerWrapper) -> tuple[int, ...]:
    """The token that begins a tool call.

    Raises:
        RedrafterError: If the model's format has no mark for it.
    """
    tokens = getattr(tokenizer, "tool_call_start_tokens", None)
    if not tokens:
        raise RedrafterError(
            "This model's tool calls begin with no mark of their own, so an answer cannot be "
            "either a call or JSON of a schema: give tools or the schema."
        )
    return tuple(tokens[:1])


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RedrafterError(MISSING) from error
    return llguidance
