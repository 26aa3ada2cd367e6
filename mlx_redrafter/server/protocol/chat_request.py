"""``POST /v1/chat/completions``: the request (OpenAI's Chat Completions API)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...text.template_arguments import PROGRAMS
from .answer_format import AnswerFormat, schema_of
from .failures import ApiError, unsupported
from .fields import (
    MAX_ANSWERS,
    Extension,
    Ignored,
    LogitBias,
    Open,
    SamplingFields,
    Stops,
    StopString,
    Strict,
    TokenLimit,
    bias_pairs,
    parse,
    stop_list,
)
from .json_body import parse_json
from .task import Conversation, Message, Parsed, Task, ToolChoice

MAX_TOP_LOGPROBS = 20
# Arguments of the template that are the server's own business.
RESERVED = PROGRAMS | {"tools", "documents"}


class TextPart(Open):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(Open):
    """An earlier refusal, read like text."""

    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Content = str | list[ContentPart]


class FunctionCall(Open):
    """Name and arguments (JSON) of a call."""

    name: str
    arguments: str


class PastToolCall(Open):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] | None = "function"
    function: FunctionCall

    @field_validator("type")
    @classmethod
    def _known(cls, _type: str | None) -> str:
        """What is null is the one kind that there is: templates read it."""
        return "function"


class SystemMessage(Open):
    """What the assistant is told beforehand."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Open):
    """What the person says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Open):
    """What the assistant said."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PastToolCall] | None = None
    function_call: None = None  # of an older form, which no template reads


class ToolMessage(Open):
    """What a call returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Open):
    """A function that may be called."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Strict):
    """A tool; functions only."""

    type: Literal["function"]
    function: Function
    cache_control: Ignored = None


class NamedFunction(Strict):
    """The name of a function."""

    name: str


class NamedTool(Strict):
    """The one function to call."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Strict):
    """What a stream carries besides."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class ChatRequest(SamplingFields):
    """The body."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    stop: StopString | Stops | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: AnswerFormat | None = None
    modalities: list[Literal["text"]] | None = None
    redrafter: Extension | None = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prediction: Ignored = None
    verbosity: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true.")
        return self


def parse_chat(body: dict[str, Any]) -> Parsed:
    """The request of a body.

    Raises:
        ApiError: 400 with the field's name.
    """
    request = parse(ChatRequest, body)
    extension = request.redrafter or Extension()
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []]
    tools, choice = choose_tools(tools, request.tool_choice)
    messages = [template_message(m, place) for place, m in enumerate(request.messages)]
    calling = (place for place, message in enumerate(messages) if message.get("tool_calls"))
    conversation = Conversation(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        template=template_arguments(request.chat_template_kwargs, request.reasoning_effort),
        past_call=next((f"messages.{place}.tool_calls" for place in calling), None),
    )
    task = Task(
        prompt=conversation,
        sampling=request.sampling() | bias_pairs(request.logit_bias),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stops=stop_list(request.stop),
        count=request.n or 1,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        schema=schema_of(request.response_format, "response_format"),
        **extension.given(),
    )
    options = request.stream_options or StreamOptions()
    return Parsed(request.model, [task], bool(request.stream), bool(options.include_usage))


def choose_tools(
    tools: list[dict[str, Any]], choice: Any
) -> tuple[list[dict[str, Any]], ToolChoice]:
    """The tools that are offered, and whether one has to be called.

    A named tool is the only one that is offered, and "none" offers none: what the template does
    not show cannot be called.

    Raises:
        ApiError: If the tool that is to be called is not among them, or there are none.
    """
    if choice is None or choice == "auto":
        return tools, "auto"
    if choice == "none":
        return [], "none"
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    if not tools:
        raise ApiError(400, "tool_choice names no tool of this request.", "tool_choice")
    return tools, "required"


def template_arguments(given: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """Arguments of the chat template.

    Raises:
        ApiError: If one is the server's own business.
    """
    arguments = dict(given or {})
    for name in sorted(RESERVED & arguments.keys()):
        raise unsupported(f"chat_template_kwargs.{name}", f"{name} cannot be set by a request.")
    if effort is not None:
        arguments.setdefault("reasoning_effort", effort)
        if effort == "none":
            arguments.setdefault("enable_thinking", False)
    return arguments


def template_message(message: Any, place: int) -> Message:
    """A message as chat templates take it: content is text, arguments are objects.

    Raises:
        ApiError: If it holds calls, and is not the assistant's.
    """
    made: Message = message.model_dump(exclude_none=True)
    refused = made.pop("refusal", "") if isinstance(message, AssistantMessage) else ""
    made["content"] = joined(message.content) + refused
    if made["role"] == "developer":
        made["role"] = "system"
    if not made.get("tool_calls"):
        made.pop("tool_calls", None)  # templates take a message with an empty list for calls
    calls = made.get("tool_calls", [])
    if calls and not isinstance(message, AssistantMessage):  # whatever these are: nobody checked
        raise unsupported(
            f"messages.{place}.tool_calls", "Only messages of the assistant's hold tool_calls."
        )
    for call in calls:
        call["function"]["arguments"] = arguments_of(call["function"]["arguments"])
    return made


def joined(content: Content | None) -> str:
    """The text of a content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(p.text if isinstance(p, TextPart) else p.refusal for p in content)


def arguments_of(text: str) -> dict[str, Any] | str:
    """A call's arguments: an object, or their text where it is none, or holds what no body may.

    Another model may have written them, and its client cannot take them back: they are no reason
    to refuse all later turns.
    """
    try:
        value = parse_json(text or "{}")
    except ApiError:
        return text
    return value if isinstance(value, dict) else text
