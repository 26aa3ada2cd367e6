"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: the request (Anthropic's API)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from .answer_format import FlatSchema, schema_of
from .chat_request import NamedFunction, NamedTool, choose_tools
from .failures import ApiError, no_threads
from .fields import (
    Extension,
    Ignored,
    MaxTokens,
    Open,
    Seed,
    Stops,
    Strict,
    Temperature,
    TopK,
    TopP,
    parse,
)
from .task import Conversation, Message, Parsed, Schema, Task, ToolChoice

ACCOUNTING = "x-anthropic-billing-header:"


class TextBlock(Open):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Open):
    """What the assistant thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Open):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Open):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]


class UserTurn(Open):
    """What the person says, and what calls returned."""

    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantTurn(Open):
    """What the assistant said; the last one is the beginning of its answer."""

    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class SystemTurn(Open):
    """What the assistant is told in the middle of a conversation."""

    role: Literal["system"]
    content: str | list[TextBlock]


Turn = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]


class CustomTool(Strict):
    """A function that may be called."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: Ignored = None
    strict: Ignored = None
    eager_input_streaming: Ignored = None
    input_examples: list[dict[str, Any]] | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class AutoChoice(Strict):
    """Whether tools may, or have to be, called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Strict):
    """The one tool to call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingOn(Strict):
    """Thinking, as far as the chat template can switch it; the budget is not enforced."""

    type: Literal["enabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    display: Ignored = None


class ThinkingOff(Strict):
    """No thinking."""

    type: Literal["disabled"]


class OutputConfig(Strict):
    """How the answer is to be."""

    effort: Ignored = None
    task_budget: Ignored = None
    format: FlatSchema | None = None


class CountRequest(Strict):
    """The body of ``count_tokens``."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: Annotated[AutoChoice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingOff, Field(discriminator="type")] | None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = None
    context_management: Ignored = None
    cache_control: Ignored = None
    speed: Ignored = None
    output_config: OutputConfig | None = None
    output_format: FlatSchema | None = None


class MessagesRequest(CountRequest):
    """The body of ``messages``."""

    max_tokens: MaxTokens
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed = None  # not the vendor's, but every answer names the one it was drawn with
    redrafter: Extension | None = None
    metadata: Ignored = None
    service_tier: Ignored = None
    inference_geo: Ignored = None


def parse_messages(body: dict[str, Any]) -> Parsed:
    """The request of a body.

    Raises:
        ApiError: 400 with the field's name.
    """
    if body.get("thread") is not None:
        raise no_threads()
    request = parse(MessagesRequest, body)
    extension = request.redrafter or Extension()
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: getattr(request, name) for name in names}
    if given["top_k"] == -1:
        given["top_k"] = 0
    task = Task(
        prompt=_conversation(request),
        sampling={name: value for name, value in given.items() if value is not None},
        max_tokens=request.max_tokens,
        stops=tuple(request.stop_sequences or ()),
        schema=_schema(request),
        **extension.given(),
    )
    return Parsed(request.model, [task], bool(request.stream))


def parse_count(body: dict[str, Any]) -> Parsed:
    """The request of a body whose tokens are to be counted.

    Raises:
        ApiError: 400 with the field's name.
    """
    request = parse(CountRequest, body)
    return Parsed(request.model, [Task(_conversation(request), schema=_schema(request))])


def _conversation(request: CountRequest) -> Conversation:
    tools, choice = _tools(request)
    messages: list[Message] = []
    system = _joined(_instructions(request.system or ""))
    if system:
        messages.append({"role": "system", "content": system})
    for turn in request.messages:
        if isinstance(turn, SystemTurn):
            messages.append({"role": "system", "content": _joined(turn.content)})
        else:
            messages.extend(_user(turn) if isinstance(turn, UserTurn) else [_assistant(turn)])
    starts = isinstance(request.messages[-1], AssistantTurn)
    if starts and messages[-1].get("tool_calls"):
        raise ApiError(
            400, "the last message is a call without its result.", "messages", "invalid_value"
        )
    if starts and _begins_nothing(messages):
        messages.pop()
        starts = False
    return Conversation(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=not (
            request.tool_choice and request.tool_choice.disable_parallel_tool_use
        ),
        continue_last=starts,
        template=_thinking(request.thinking),
        usual={"enable_thinking": False},
        past_call=_past_call(request.messages),
    )


def _schema(request: CountRequest) -> Schema | None:
    """The schema that the answer has to follow, by its present name or its first one."""
    config = request.output_config
    given = schema_of(config.format if config else None, "output_config.format")
    first = schema_of(request.output_format, "output_format")
    if given and first and given.content != first.content:
        message = "output_format and output_config.format differ: give one of the two."
        raise ApiError(400, message, "output_format", "invalid_value")
    return given or first


def _thinking(given: ThinkingOn | ThinkingOff | None) -> dict[str, Any]:
    """What the request says of thinking to the chat template."""
    return {} if given is None else {"enable_thinking": isinstance(given, ThinkingOn)}


def _begins_nothing(messages: list[Message]) -> bool:
    """Whether the last message, which begins the answer, is blank.

    Where a template trims what is said, the line break with which it opens a turn would be taken
    for the blank message's, and cut off.
    """
    last = messages[-1]
    return len(messages) > 1 and not last["content"].strip() and "reasoning_content" not in last


def _instructions(system: str | list[TextBlock]) -> str | list[TextBlock]:
    """The system prompt without Claude Code's line for the vendor's accounting.

    It is no instruction to the model, and differs from conversation to conversation: at the very
    beginning of a prompt it would leave nothing of the prefix that they share.
    """
    if isinstance(system, str):
        return system
    return [block for block in system if not block.text.startswith(ACCOUNTING)]


def _tools(request: CountRequest) -> tuple[list[dict[str, Any]], ToolChoice]:
    tools: list[dict[str, Any]] = []
    for tool in request.tools or []:
        function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
        if description := _description(tool):
            function["description"] = description
        tools.append({"type": "function", "function": function})
    return choose_tools(tools, _choice(request.tool_choice))


def _description(tool: CustomTool) -> str:
    """What is said of a tool; examples are part of it, since templates have no place for them."""
    examples = [json.dumps(one, ensure_ascii=False) for one in tool.input_examples or []]
    listed = ["Examples of its input:\n" + "\n".join(examples)] if examples else []
    return "\n\n".join([tool.description, *listed] if tool.description else listed)


def _choice(choice: AutoChoice | NamedChoice | None) -> str | NamedTool | None:
    """The choice in the words of Chat Completions."""
    if isinstance(choice, NamedChoice):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return None if choice is None else {"any": "required"}.get(choice.type, choice.type)


def _user(turn: UserTurn) -> list[Message]:
    """A turn as messages: results first, as templates want them after their calls."""
    if isinstance(turn.content, str):
        return [{"role": "user", "content": turn.content}]
    results: list[Message] = [
        {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": ("Error: " if block.is_error else "") + _joined(block.content or ""),
        }
        for block in turn.content
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block.text for block in turn.content if isinstance(block, TextBlock)]
    if texts or not results:
        results.append({"role": "user", "content": "\n".join(texts)})
    return results


def _assistant(turn: AssistantTurn) -> Message:
    if isinstance(turn.content, str):
        return {"role": "assistant", "content": turn.content}
    blocks = turn.content
    message: Message = {
        "role": "assistant",
        "content": "".join(block.text for block in blocks if isinstance(block, TextBlock)),
    }
    thinking = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": block.input},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _past_call(turns: Sequence[Turn]) -> str | None:
    """The first block that is a call."""
    calls = (
        f"messages.{place}.content.{index}"
        for place, turn in enumerate(turns)
        if isinstance(turn, AssistantTurn)
        for index, block in enumerate(turn.content)
        if isinstance(block, ToolUseBlock)
    )
    return next(calls, None)


def _joined(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
