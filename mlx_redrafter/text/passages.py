"""An answer taken apart by mlx-lm's own markers: thoughts, the answer itself, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from ..ranges import of_kind, of_kind_or_none, token_ids
from .tokenizers import wrapped

ANSWER, THOUGHTS, TOOL_CALL = "normal", "reasoning", "tool"
# In other states, such as "header", a format says what follows, which is no part of the answer.
KINDS = frozenset({ANSWER, THOUGHTS, TOOL_CALL})


@dataclass(frozen=True)
class Passage:
    """A piece of an answer.

    Attributes:
        text: What it says, without markers.
        kind: "normal", "reasoning" or "tool", as mlx-lm calls them.
    """

    text: str
    kind: str


@dataclass(frozen=True)
class ParsedAnswer:
    """A whole answer.

    Attributes:
        text: What is said to the person.
        thoughts: What a reasoning model wrote for itself; "" where it did not.
        tool_calls: Calls of functions, each {"name", "arguments"}.
    """

    text: str
    thoughts: str
    tool_calls: tuple[dict[str, Any], ...]


class Passages:
    """Takes an answer's text in pieces and gives it out as passages.

    Text that may still turn out to be a marker is held back; headers of messages are left out.

    Args:
        tokenizer: mlx-lm's, which knows the markers; of others nothing is taken apart.
        prompt: Token ids that the answer follows; some templates open the thoughts themselves.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()):
        self.kind = ANSWER
        self._state: Any = None
        if hasattr(tokenizer, "has_thinking"):
            self.kind = first_kind(tokenizer, list(prompt))
            self._state = make_text_state_machine(tokenizer).make_state(self.kind)

    @property
    def thinking(self) -> bool:
        """Whether what comes is thoughts."""
        return self.kind == THOUGHTS

    def feed(self, text: str) -> list[Passage]:
        """Take a piece; return the passages that are certain."""
        if self._state is None:
            return [Passage(text, ANSWER)] if text else []
        self._state, segments = TextStateMachine.split(self._state, text)
        self.kind = self._state[0]
        return [Passage(part, kind) for kind, part in segments if part and kind in KINDS]

    def flush(self) -> list[Passage]:
        """What was held back, when no more text comes."""
        if self._state is None:
            return []
        self._state, text, kind = TextStateMachine.flush(self._state)
        return [Passage(text, kind)] if text and kind in KINDS else []


def first_kind(tokenizer: Any, prompt: list[int]) -> str:
    """What the end of a prompt has opened.

    Args:
        tokenizer: mlx-lm's.
        prompt: Token ids.
    """
    initial: str = tokenizer.response_initial_state or ANSWER
    if initial == ANSWER and tokenizer.has_thinking:
        opened = tokenizer.rfind_think_start(prompt)
        if opened != -1 and tokenizer.rfind_think_end(prompt) < opened:
            return THOUGHTS
    return initial


def parse_answer(
    tokenizer: Any,
    text: str,
    *,
    prompt: Sequence[int] = (),
    tools: Sequence[dict[str, Any]] | None = None,
) -> ParsedAnswer:
    """Take a whole answer apart.

    A call that the model's parser cannot read stays text, so nothing that was said is lost.

    Args:
        tokenizer: From ``load``, or one of transformers'.
        text: As ``generate`` returns it.
        prompt: Token ids that it followed, for templates that open the thoughts themselves.
        tools: Those that were offered, whose parameters say of which kind arguments are.

    Raises:
        RedrafterError: If an argument is of another kind.
    """
    of_kind(text, "text", str, "an answer's text, as generate returns it")
    prompt = token_ids(prompt, "prompt")
    kinds = (list, tuple)
    of_kind_or_none(tools, "tools", kinds, "a list of descriptions of functions")
    if not hasattr(tokenizer, "has_thinking"):
        tokenizer = wrapped(tokenizer)
    passages = Passages(tokenizer, prompt)
    said, thoughts, calls = "", "", []
    for passage in _joined([*passages.feed(text), *passages.flush()]):
        found = _calls(tokenizer, passage.text, tools) if passage.kind == TOOL_CALL else None
        if found is not None:
            calls += found
        elif passage.kind == THOUGHTS:
            thoughts += passage.text
        else:
            said += passage.text
    return ParsedAnswer(said.strip() if thoughts or calls else said, thoughts.strip(), tuple(calls))


def _joined(passages: Sequence[Passage]) -> list[Passage]:
    """Neighbours of one kind as one, but not two calls."""
    joined: list[Passage] = []
    for passage in passages:
        if joined and joined[-1].kind == passage.kind != TOOL_CALL:
            joined[-1] = Passage(joined[-1].text + passage.text, passage.kind)
        else:
            joined.append(passage)
    return joined


def _calls(
    tokenizer: Any, text: str, tools: Sequence[dict[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """The calls in a passage, None where its text is none."""
    try:
        found = tokenizer.tool_parser(text, list(tools) if tools else None)
    except Exception:  # parsers raise errors of their own kinds over what a model wrote
        return None
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return None
    return [{**call, "arguments": _arguments(call.get("arguments"))} for call in calls]


def _arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
