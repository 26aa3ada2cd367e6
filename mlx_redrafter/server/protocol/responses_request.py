"""``POST /v1/responses``: the request (OpenAI's Responses API, without anything stored)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .answer_format import TextFormat, schema_of
from .chat_request import (
    MAX_TOP_LOGPROBS,
    NamedFunction,
    NamedTool,
    arguments_of,
    choose_tools,
    template_arguments,
)
from .failures import ApiError, no_stored_item
from .fields import (
    Extension,
    Ignored,
    Open,
    SamplingFields,
    Strict,
    TokenLimit,
    parse,
)
from .task import Conversation, Message, Parsed, Task

LOGPROBS = "message.output_text.logprobs"


class InputText(Open):
    """A piece of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputRefusal(Open):
    """An earlier refusal, read like text."""

    type: Literal["refusal"]
    refusal: str


InputPart = Annotated[InputText | InputRefusal, Field(discriminator="type")]


class InputMessage(Open):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]


class FunctionCallItem(Open):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class FunctionOutputItem(Open):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]


class ReasoningText(Open):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(Open):
    """What the assistant thought before it went on."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None


Item = Annotated[
    FunctionCallItem | FunctionOutputItem | ReasoningItem | InputMessage,
    Field(discriminator="type"),
]


class FunctionTool(Open):
    """A function that may be called."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class NamespaceTool(Open):
    """Functions that belong together; a call names the namespace beside the function."""

    type: Literal["namespace"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    tools: list[FunctionTool]


class NamedChoice(Strict):
    """The one function to call."""

    type: Literal["function"]
    name: str
    namespace: str | None = None


class Reasoning(Strict):
    """How much to think; handed to the chat template."""

    effort: str | None = None
    summary: Ignored = None
    generate_summary: Ignored = None


class TextOptions(Strict):
    """Of the answer's text."""

    format: TextFormat | None = None
    verbosity: Ignored = None


class ResponsesRequest(SamplingFields):
    """The body."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: TokenLimit = None
    tools: list[Annotated[FunctionTool | NamespaceTool, Field(discriminator="type")]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    redrafter: Extension | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled", "auto"] | None = None  # a prompt too long is refused
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None
    include: list[str] | None = None
    stream_options: Ignored = None
    store: Ignored = None
    metadata: Ignored = None
    user: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    client_metadata: Ignored = None
    context_management: Ignored = None

    @property
    def tells_logprobs(self) -> bool:
        """Whether the answer's tokens come with their log-probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or [])

    @field_validator("input", mode="before")
    @classmethod
    def _typed(cls, value: Any) -> Any:
        """Messages may come without a type."""
        if not isinstance(value, list):
            return value
        for place, item in enumerate(value):
            if isinstance(item, dict) and item.get("type") == "item_reference":
                raise no_stored_item(f"input.{place}.type")
        return [
            {**item, "type": "message"}
            if isinstance(item, dict) and "role" in item and item.get("type") is None
            else item
            for item in value
        ]

    @field_validator("include")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            # Nothing is encrypted, so there is nothing to add.
            if name not in ("reasoning.encrypted_content", LOGPROBS):
                raise ValueError(f"include does not know {name} here.")
        return value


def parse_responses(body: dict[str, Any]) -> Parsed:
    """The request of a body.

    Raises:
        ApiError: 400 with the field's name.
    """
    request = parse(ResponsesRequest, body)
    extension = request.redrafter or Extension()
    tools, namespaced = _tools(request)
    choice: Any = request.tool_choice
    if isinstance(choice, NamedChoice):
        name = joined_name(choice.namespace, choice.name)
        choice = NamedTool(type="function", function=NamedFunction(name=name))
    offered, policy = choose_tools(tools, choice)
    effort = request.reasoning.effort if request.reasoning else None
    conversation = Conversation(
        messages=_messages(request),
        tools=offered,
        tool_choice=policy,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        template=template_arguments(request.chat_template_kwargs, effort),
        past_call=_past_call(request),
    )
    task = Task(
        prompt=conversation,
        sampling=request.sampling(),
        max_tokens=request.max_output_tokens,
        logprobs=(request.top_logprobs or 0) if request.tells_logprobs else None,
        schema=schema_of(request.text.format if request.text else None, "text.format"),
        **extension.given(),
    )
    echo = _echo(request, body)
    return Parsed(request.model, [task], bool(request.stream), echo=echo, namespaced=namespaced)


def joined_name(namespace: str | None, name: str) -> str:
    """The one name under which a chat template shows a function of a namespace."""
    if not namespace:
        return name
    return f"{namespace}{'' if namespace.endswith('_') else '__'}{name}"


def _tools(
    request: ResponsesRequest,
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, str]]]:
    """All functions, and of those in namespaces: (namespace, name) by their joined name.

    Raises:
        ApiError: If two have one name, so that a call could mean either.
    """
    tools: list[dict[str, Any]] = []
    namespaced: dict[str, tuple[str, str]] = {}
    for tool in request.tools or []:
        if isinstance(tool, FunctionTool):
            tools.append(_tool(tool, tool.name))
            continue
        for inner in tool.tools:
            name = joined_name(tool.name, inner.name)
            tools.append(_tool(inner, name))
            namespaced[name] = (tool.name, inner.name)
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in namespaced if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, f"tools holds {twice} twice.", "tools", "invalid_value")
    return tools, namespaced


def _tool(tool: FunctionTool, name: str) -> dict[str, Any]:
    """A function in the form of Chat Completions, which chat templates read."""
    fields = tool.model_dump(exclude_none=True, exclude={"type"})
    return {"type": "function", "function": fields | {"name": name}}


def _messages(request: ResponsesRequest) -> list[Message]:
    """The input as messages; what belongs to one turn of the assistant's is joined."""
    messages: list[Message] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        if isinstance(item, FunctionOutputItem):
            answer = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
            messages.append(answer)
        elif isinstance(item, InputMessage) and item.role != "assistant":
            _say(messages, "user" if item.role == "user" else "system", _text(item.content))
        else:
            _join(_turn(messages), item)
    if not messages:
        raise ApiError(400, "input holds no message.", "input", "invalid_value")
    return messages


def _past_call(request: ResponsesRequest) -> str | None:
    """The first item that is a call."""
    items = [] if isinstance(request.input, str) else request.input
    calls = (
        f"input.{place}" for place, item in enumerate(items) if isinstance(item, FunctionCallItem)
    )
    return next(calls, None)


def _say(messages: list[Message], role: str, text: str) -> None:
    """Add a message; one more of the system's at the beginning is part of the first."""
    if role == "system" and messages and all(m["role"] == "system" for m in messages):
        messages[-1]["content"] += "\n\n" + text
    else:
        messages.append({"role": role, "content": text})


def _turn(messages: list[Message]) -> Message:
    """The assistant's turn under way, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _join(turn: Message, item: Any) -> None:
    """Add reasoning, text or a call to the assistant's turn."""
    if isinstance(item, InputMessage):
        turn["content"] += _text(item.content)
    elif isinstance(item, ReasoningItem):
        parts = item.content or item.summary or []
        if parts:
            thought = "".join(part.text for part in parts)
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thought
    else:
        name = joined_name(item.namespace, item.name)
        function = {"name": name, "arguments": arguments_of(item.arguments)}
        call = {"id": item.call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _text(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "".join(p.text if isinstance(p, InputText) else p.refusal for p in content)


def _echo(request: ResponsesRequest, body: dict[str, Any]) -> dict[str, Any]:
    """What the answer repeats of the request, as this API does."""
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": body.get("metadata") if isinstance(body.get("metadata"), dict) else {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "temperature": request.temperature,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "store": False,
        "previous_response_id": None,
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "text": body.get("text") or {"format": {"type": "text"}},
        "top_logprobs": request.top_logprobs or 0,
    }
