"""Answers that follow a JSON schema: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError
from ..ranges import of_kind
from .passages import ANSWER, THOUGHTS, first_kind
from .tokenizers import wrapped

# Between JSON's tokens: models break lines and indent, and some would never stop to.
WHITESPACE = r"[ \n]{0,16}"
MISSING = "Answers that follow a JSON schema need llguidance: pip install llguidance."


class JsonAnswer:
    """A logits processor that lets one text's answer be nothing but JSON of a schema.

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
        self._matcher = _matcher(tokenizer, schema)
        self._tokenizer = tokenizer
        self._ends = sorted(tokenizer.eos_token_ids)
        self._calls = _call_starts(tokenizer) if calls else ()
        self._seen = 0  # tokens of the text that were looked at
        self._prompt = 0
        self._free = False
        self._begun = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """The logits, -inf for every token that may not come next.

        Args:
            tokens: Prompt and text, int (k,); called once for each token, in their order.
            logits: (1, vocab_size).
        """
        text = cast("list[int]", tokens.tolist())
        if not self._seen:
            self._prompt = len(text)
            self._free = first_kind(self._tokenizer, text) == THOUGHTS
        else:
            for token in text[self._seen :]:
                self._take(token, text)
        self._seen = len(text)
        if self._free:
            return logits
        allowed = mx.array(self._allowed(logits.shape[-1]))
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))

    def _take(self, token: int, text: list[int]) -> None:
        """Follow the text by a token of the model's."""
        if self._free:
            # What is free from its beginning on is thoughts, and a call to its end.
            if not self._begun and self._tokenizer.rfind_think_end(text[self._prompt :]) != -1:
                self._free = False
        elif not self._begun and token in self._calls and not self._matches(token):
            self._free = self._begun = True
        else:
            self._begun = True
            if token not in self._ends:
                self._matcher.consume_token(token)

    def _matches(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]))

    def _allowed(self, vocab_size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tokens may come next, bool (vocab_size,)."""
        allowed = np.zeros(vocab_size, dtype=np.bool_)
        ends = [token for token in self._ends if token < vocab_size]
        if self._matcher.is_stopped() or self._matcher.is_error():
            allowed[ends] = True
            return allowed
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(bits, bitorder="little")[:vocab_size]
        allowed[: len(known)] = known
        allowed[ends] = self._matcher.is_accepting() or not allowed.any()
        if not self._begun:
            allowed[list(self._calls)] = True
        return allowed


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
