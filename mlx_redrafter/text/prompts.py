"""Prompts: text, token ids or chat messages, as token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError
from ..ranges import are_counts, of_kind_or_none
from .chat_template import render
from .template_arguments import TOKENIZERS

Messages = Sequence[dict[str, Any]]
_TEXT_PARTS = ("text", "input_text", "output_text")


def encode_prompt(
    tokenizer: TokenizerWrapper,
    prompt: str | Sequence[int] | Messages | mx.array,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    name: str = "The prompt",
) -> list[int]:
    """Token ids of a prompt: text, ids, or chat messages through the chat template.

    Args:
        tokenizer: The target's.
        prompt: Text, ids (a list, or an array of mlx or numpy), or messages.
        tools: Descriptions of functions, handed to the chat template.
        template_args: Further arguments of the chat template, such as ``enable_thinking``.
        name: What to call the prompt where it is refused.

    Raises:
        RedrafterError: If it is empty or holds what no model reads, or messages meet a tokenizer
            without a chat template.
    """
    options = {**_checked_arguments(template_args), **_checked_tools(tools)}
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        check_characters(prompt, name)
        return _not_empty(list(tokenizer.encode(prompt, add_special_tokens=special)), name)
    listed: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    # Bytes are a sequence of numbers, but not of token ids.
    readable = isinstance(listed, Sequence) and not isinstance(listed, bytes | bytearray)
    items: list[Any] = list(listed) if readable else [None]
    if items and all(isinstance(item, Mapping) for item in items):
        return _not_empty(_encode_messages(tokenizer, items, options), name)
    if not are_counts(items):
        raise RedrafterError(
            f"{name} has to be text, a list of token ids, or a list of chat messages "
            '({"role": ..., "content": ...}).'
        )
    return _not_empty([int(item) for item in items], name)


def _checked_arguments(given: Any) -> Mapping[str, Any]:
    """Further arguments of the chat template."""
    wanted = "a mapping of names to values"
    arguments = of_kind_or_none(given, "chat_template_args", Mapping, wanted) or {}
    for name in arguments:
        if not isinstance(name, str) or name in TOKENIZERS:
            raise RedrafterError(
                f"chat_template_args has {name!r}, which is no argument of a chat template: "
                "leave it out."
            )
    return cast("Mapping[str, Any]", arguments)


def _checked_tools(given: Any) -> dict[str, Any]:
    """The functions as the template's argument, if there are any."""
    kinds = (list, tuple)
    tools = of_kind_or_none(given, "tools", kinds, "a list of descriptions of functions")
    return {"tools": list(tools)} if tools else {}


def plain_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages whose content is text: parts of text joined, other kinds refused by name.

    Raises:
        RedrafterError: If a message has no role, no content, content that is not text, or calls of
            tools that are no list of objects.
    """
    return [_plain_message(place, message) for place, message in enumerate(messages, start=1)]


def _plain_message(place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RedrafterError(f"Message {place} has no role: give it user, assistant or system.")
    calls = _calls(place, message.get("tool_calls"))
    if "content" not in message and not calls:
        raise RedrafterError(f"Message {place} has no content: give it the text as content.")
    plain = {**message, "content": _content(place, message.get("content"))}
    if calls:
        plain["tool_calls"] = [_with_arguments(call) for call in calls]
    else:
        plain.pop("tool_calls", None)  # templates take a message with an empty list for calls
    return plain


def _calls(place: int, calls: Any) -> Sequence[Any] | None:
    # Iterated over, a text would become its letters, and a mapping its names.
    listed = isinstance(calls, list | tuple) and all(isinstance(c, Mapping) for c in calls)
    # An array says of itself neither that it is empty nor that it is not.
    if not listed and (hasattr(calls, "tolist") or calls):
        raise RedrafterError(
            f"Message {place} has tool_calls that are no list of calls: correct them, or leave "
            "them out."
        )
    return cast("Sequence[Any] | None", calls)


def _content(place: int, content: Any) -> str:
    if content is None:
        return ""
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise RedrafterError(f"The content of message {place} is not text: give it as text.")
    texts = [_part(place, part) for part in parts]
    text = "".join(texts)
    check_characters(text, f"The content of message {place}")
    return text


def _part(place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    raise RedrafterError(
        f"Message {place} has a part of the kind '{kind}', but only text can be read: leave it out."
    )


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool call whose arguments are an object, as templates want them, not JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def check_characters(text: str, what: str) -> None:
    """Refuse halves of characters, which no tokenizer takes.

    Raises:
        RedrafterError: Naming ``what`` holds one, and where.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RedrafterError(
            f"{what} holds half a character (a lone surrogate) at position {error.start}: "
            "read the text as UTF-8, or remove it."
        ) from None


def _not_empty(ids: list[int], name: str) -> list[int]:
    if not ids:
        raise RedrafterError(f"{name} is empty: give at least one token.")
    return ids


def _encode_messages(
    tokenizer: TokenizerWrapper, messages: Messages, options: Mapping[str, Any]
) -> list[int]:
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "This model's tokenizer has no chat template: pass the prompt as text instead."
        )
    options = {"add_generation_prompt": True, **options}
    text = render(tokenizer, plain_messages(messages), **options)
    if not isinstance(text, str):
        return list(text)
    check_characters(text, "What the chat template made of the messages")
    return list(tokenizer.encode(text, add_special_tokens=False))
