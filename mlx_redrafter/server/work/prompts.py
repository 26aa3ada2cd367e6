"""Requests as token ids: chat templates, tools, forced calls, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...errors import RedrafterError
from ...text.passages import ANSWER, KINDS, THOUGHTS, TOOL_CALL, first_kind
from ...text.prompts import encode_prompt
from ..protocol.failures import ApiError, unsupported
from ..protocol.task import Conversation, Task
from .message_order import orders, with_objects


@dataclass(frozen=True)
class Encoded:
    """A prompt.

    Attributes:
        ids: Token ids, at least one.
        initial: What its end has opened: "normal", "reasoning", "tool"; None for bare text, whose
            continuation is not taken apart.
        continues: Whether its end is a text that the answer goes on from, space and all: bare text,
            or the beginning of the answer itself.
        left_out: Space at the end of the answer's beginning that the chat template left out.
        tools: Those offered.
        parallel: Whether several calls may be made.
    """

    ids: list[int]
    initial: str | None = None
    continues: bool = False
    left_out: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    parallel: bool = True


def encode(
    tokenizer: TokenizerWrapper,
    task: Task,
    vocab_size: int,
    template: Mapping[str, Any] | None = None,
) -> Encoded:
    """The prompt of a task.

    Args:
        tokenizer: The model's.
        task: Whose prompt.
        vocab_size: Tokens that the model knows.
        template: Arguments of the chat template where the request names none.

    Raises:
        ApiError: 400 if the model has no chat template or no tools, the template refuses the
            messages, a token id is not the vocabulary's, or the prompt is empty.
    """
    prompt = task.prompt
    if isinstance(prompt, Conversation):
        encoded = _conversation(tokenizer, prompt, template or {})
    else:
        try:
            encoded = Encoded(encode_prompt(tokenizer, prompt), continues=True)
        except RedrafterError as error:
            raise ApiError(400, str(error), "prompt", "invalid_value") from error
    if any(token >= vocab_size for token in encoded.ids):
        message = f"prompt holds token ids outside the vocabulary of {vocab_size}."
        raise ApiError(400, message, "prompt", "invalid_value")
    return encoded


def _conversation(
    tokenizer: TokenizerWrapper, conversation: Conversation, template: Mapping[str, Any]
) -> Encoded:
    if not tokenizer.has_chat_template:
        raise ApiError(400, "This model has no chat template: use /v1/completions.", "messages")
    if conversation.tools and not tokenizer.has_tool_calling:
        raise unsupported(
            "tools",
            "This model has no format for tool calls: leave tools out, or use one that has.",
        )
    if conversation.past_call is not None and not tokenizer.has_tool_calling:
        # Its template would leave the call out, and no one would know.
        raise unsupported(
            conversation.past_call,
            "This model has no format for tool calls: leave those of earlier turns out, or use a "
            "model that has.",
        )
    ids = _templated(tokenizer, conversation, template)
    left_out = _left_out(tokenizer, conversation, template, ids)
    initial = first_kind(tokenizer, ids)
    continues = conversation.continue_last and bool(conversation.messages[-1]["content"])
    if continues and initial not in KINDS:
        initial = ANSWER  # the header is written
    if conversation.tool_choice == "required":
        # What is begun with the marker of a call can only become one.
        marker = tokenizer.tool_call_start
        if initial == THOUGHTS:  # the template opens them, whatever it is told
            marker = f"\n{tokenizer.think_end}\n\n{marker}"
        ids += list(tokenizer.encode(marker, add_special_tokens=False))
        initial = TOOL_CALL
    return Encoded(
        ids,
        initial,
        continues=continues,
        left_out=left_out,
        tools=tuple(conversation.tools),
        parallel=conversation.parallel_tool_calls,
    )


def _left_out(
    tokenizer: TokenizerWrapper,
    conversation: Conversation,
    template: Mapping[str, Any],
    ids: list[int],
) -> str:
    """Space at the end of the answer's beginning that makes no difference to the prompt.

    Many templates trim each message. The model then writes the space that its client has already,
    and it would stand there twice.
    """
    if not conversation.continue_last:
        return ""
    said = conversation.messages[-1]["content"]
    kept = said.rstrip()
    if kept == said:
        return ""
    trimmed = [*conversation.messages[:-1], {**conversation.messages[-1], "content": kept}]
    same = _templated(tokenizer, replace(conversation, messages=trimmed), template) == ids
    return said[len(kept) :] if same else ""


def _templated(
    tokenizer: TokenizerWrapper, conversation: Conversation, template: Mapping[str, Any]
) -> list[int]:
    forced = {"enable_thinking": False} if conversation.tool_choice == "required" else {}
    arguments = {**conversation.usual, **template, **conversation.template, **forced}
    if conversation.continue_last:
        arguments |= {"add_generation_prompt": False, "continue_final_message": True}
    given = conversation.messages
    objects = with_objects(given)
    refused: RedrafterError | None = None
    for readable in (given,) if objects == given else (given, objects):
        refused = None  # that a template takes no text for arguments is nothing to tell
        for messages in orders(readable):
            try:
                return encode_prompt(
                    tokenizer, messages, tools=conversation.tools or None, template_args=arguments
                )
            except RedrafterError as error:
                refused = refused or error
                if error.__cause__ is None:
                    break  # no word of the template's: it was stopped, or the text is no text
    raise ApiError(400, str(refused), "messages", "invalid_value") from refused
