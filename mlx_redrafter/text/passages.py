"""An answer taken apart by mlx-lm's own markers: thoughts, the answer itself, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from ..ranges import check_flags, of_kind, of_kind_or_none, token_ids
from .tokenizers import wrapped

ANSWER, THOUGHTS, TOOL_CALL = "normal", "reasoning", "tool"
# In other states, such as "header", a format says what follows, which is no part of the answer.
KINDS = frozenset({ANSWER, THOUGHTS, TOOL_CALL})
_SIGNS = ("<|", "<\N{FULLWIDTH VERTICAL LINE}")


@dataclass(frozen=True)
class Passage:
    """A piece of an answer.

    Attributes:
        text: What it says, without markers.
        kind: "normal", "reasoning" or "tool", as mlx-lm calls them.
        closed: Whether a marker ended it, behind this very text.
    """

    text: str
    kind: str
    closed: bool = field(default=False, compare=False)


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

    Text that may still turn out to be a marker is held back. Headers of messages are left out; what
    stands where one should, but is never ended as one, is the answer if nothing else is.

    Args:
        tokenizer: mlx-lm's, which knows the markers; of others nothing is taken apart.
        prompt: Token ids that the answer follows; some templates open the thoughts themselves.
        begun: What has been given out of the answer already, to its last character.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = (), begun: str = ""):
        self.kind = ANSWER
        self._state: Any = None
        self._header = ""  # what no marker has confirmed to be one
        self._said = False
        self._shown = 0  # characters that are held back, but were given out
        self._shown_header = 0
        if hasattr(tokenizer, "has_thinking"):
            self.kind = first_kind(tokenizer, list(prompt))
            self._state = make_text_state_machine(tokenizer).make_state(self.kind)
            self.feed(begun)
            self._note_shown()

    @property
    def thinking(self) -> bool:
        """Whether what comes is thoughts."""
        return self.kind == THOUGHTS

    def feed(self, text: str) -> list[Passage]:
        """Take a piece; return the passages that are certain."""
        if self._state is None:
            return [Passage(text, ANSWER)] if text else []
        segments = self._split(text)
        self.kind = self._state[0]
        passages = []
        for place, (kind, part) in enumerate(segments, start=1):
            if kind not in KINDS:
                self._header += part
            else:
                self._header, self._shown_header = "", 0
                passages.append(Passage(part, kind, closed=place < len(segments)))
        return self._given(passages)

    def flush(self) -> list[Passage]:
        """What was held back, when no more text comes."""
        if self._state is None:
            return []
        self._state, text, kind = TextStateMachine.flush(self._state)
        text, self._shown = text[self._shown :], 0
        if kind not in KINDS:
            text = self._header[self._shown_header :] + text if self._answers else ""
            kind, self._header, self._shown_header = ANSWER, "", 0
        return self._given([Passage(text, kind)])

    def _given(self, passages: list[Passage]) -> list[Passage]:
        given = [passage for passage in passages if passage.text]
        self._said = self._said or bool(given)
        return given

    @property
    def _answers(self) -> bool:
        """Whether what stands in a header's place is the answer."""
        return bool(self._header.strip()) and not self._said

    def _note_shown(self) -> None:
        """Note what a flush would give out now."""
        if self.kind in KINDS or self._answers:
            self._shown = len(self._state[3])
            self._shown_header = len(self._header)

    def _split(self, text: str) -> list[tuple[str, str]]:
        """More text by states, without what is released of it that was given out.

        As long as there is such text, it is read character by character: of several markers at once
        the machine does not say which characters are theirs.
        """
        segments: list[tuple[str, str]] = []
        while self._shown and text:
            before = len(self._state[3])
            self._state, ((kind, part), *others) = TextStateMachine.split(self._state, text[0])
            decided = before + 1 - len(self._state[3])
            segments += [(kind, part[self._shown :]), *others]
            self._shown = max(0, self._shown - decided)
            text = text[1:]
        self._state, rest = TextStateMachine.split(self._state, text)
        return [*segments, *rest]


def first_kind(tokenizer: Any, prompt: list[int]) -> str:
    """What the end of a prompt has opened.

    Questions and files may hold the markers of thoughts too. Behind what was not written by the
    template for this answer, a special token ends a turn or begins one; where a template sets turns
    apart by mere words, the last marker counts.

    Args:
        tokenizer: mlx-lm's.
        prompt: Token ids.
    """
    initial: str = tokenizer.response_initial_state or ANSWER
    if initial == ANSWER and tokenizer.has_thinking:
        opened = tokenizer.rfind_think_start(prompt)
        if opened != -1 and tokenizer.rfind_think_end(prompt) < opened:
            marker = getattr(tokenizer, "think_start_tokens", None) or prompt[opened : opened + 1]
            behind = prompt[opened + len(marker) :]
            return ANSWER if _between_turns(tokenizer).intersection(behind) else THOUGHTS
    return initial


def _between_turns(tokenizer: Any) -> set[int]:
    """Special tokens that are no part of an answer."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    # DeepSeek's names of the speakers are not marked as special, but look like it.
    special = {t for t, e in added.items() if e.special or e.content.startswith(_SIGNS)}
    special |= set(getattr(tokenizer, "eos_token_ids", ()))
    for name in ("think_end_tokens", "tool_call_start_tokens", "tool_call_end_tokens"):
        special -= set(getattr(tokenizer, name, None) or ())
    return special


def parse_answer(
    tokenizer: Any,
    text: str,
    *,
    prompt: Sequence[int] = (),
    tools: Sequence[dict[str, Any]] | None = None,
    follows_schema: bool = False,
) -> ParsedAnswer:
    """Take a whole answer apart.

    A call that the model's parser cannot read stays text, so nothing that was said is lost; so does
    one at the end that has no end though the model's format knows one, as what was cut off there
    may be the rest of its arguments.

    Args:
        tokenizer: From ``load``, or one of transformers'.
        text: As ``generate`` returns it.
        prompt: Token ids that it followed, for templates that open the thoughts themselves.
        tools: Those that were offered, whose parameters say of which kind arguments are.
        follows_schema: Whether it was written with a ``json_schema``: then what follows the
            thoughts is JSON as it stands, whatever markers it holds, or begins with a call.

    Raises:
        RedrafterError: If an argument is of another kind.
    """
    of_kind(text, "text", str, "an answer's text, as generate returns it")
    prompt = token_ids(prompt, "prompt")
    kinds = (list, tuple)
    of_kind_or_none(tools, "tools", kinds, "a list of descriptions of functions")
    if not hasattr(tokenizer, "has_thinking"):
        tokenizer = wrapped(tokenizer)
    check_flags(follows_schema=follows_schema)
    if follows_schema:
        return _parse_json(tokenizer, text, list(prompt), tools)
    passages = Passages(tokenizer, prompt)
    said, thoughts, calls = "", "", []
    for passage in _joined([*passages.feed(text), *passages.flush()]):
        whole = passage.closed or not getattr(tokenizer, "tool_call_end", None)
        called = passage.kind == TOOL_CALL and whole
        found = _calls(tokenizer, passage.text, tools) if called else None
        if found is not None:
            calls += found
        elif passage.kind == THOUGHTS:
            thoughts += passage.text
        else:
            said += passage.text
    return ParsedAnswer(said.strip() if thoughts or calls else said, thoughts.strip(), tuple(calls))


def _parse_json(
    tokenizer: Any, text: str, prompt: list[int], tools: Sequence[dict[str, Any]] | None
) -> ParsedAnswer:
    thoughts = ""
    if first_kind(tokenizer, prompt) == THOUGHTS:
        thoughts, _, text = text.partition(tokenizer.think_end)
    start = tokenizer.tool_call_start
    if not tools or not start or not text.startswith(start):
        return ParsedAnswer(text, thoughts.strip(), ())
    return replace(parse_answer(tokenizer, text, tools=tools), thoughts=thoughts.strip())


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
