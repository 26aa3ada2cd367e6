"""A request, whichever API it came by: what is to be answered and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as a chat template takes them.

    Attributes:
        messages: {"role", "content", ...}; contents are text.
        tools: {"type": "function", "function": {...}} each.
        tool_choice: "required" makes the answer begin with a call.
        parallel_tool_calls: False ends the answer after its first call.
        continue_last: Whether the last message is the beginning of the answer.
        template: Further arguments of the chat template, such as ``enable_thinking``.
        usual: Those that the API stands for where neither the request nor the server names any.
        past_call: The field of the request that holds the first call made earlier; None for none.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    continue_last: bool = False
    template: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)
    past_call: str | None = None


@dataclass(frozen=True)
class Schema:
    """A JSON schema that an answer has to follow.

    Attributes:
        field: Its place in the request, for errors.
        content: It, not checked yet.
    """

    field: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One prompt and how to answer it.

    Attributes:
        prompt: A conversation, text, or token ids.
        sampling: Fields of SamplingConfig that the request names; the server's defaults hold for
            the others.
        max_tokens: Tokens at most; None for the server's default.
        stops: Strings that end the answer; they are not part of it.
        count: Answers wanted, with consecutive seeds.
        logprobs: None for no log-probabilities; else how many of the likeliest alternatives.
        schema: What the answer has to follow; None for free text.
        draft: False decodes plainly.
        copies: Whether copies of the text are drafted too; None for the server's default.
        trace: Whether each step is reported: tokens' sources, the draft tree, counts.
    """

    prompt: Conversation | str | list[int]
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    count: int = 1
    logprobs: int | None = None
    schema: Schema | None = None
    draft: bool = True
    copies: bool | None = None
    trace: bool = False


@dataclass(frozen=True)
class Parsed:
    """A request that was understood.

    Attributes:
        model: The name it asks for; None for the default.
        tasks: What to answer: one, or one a prompt.
        stream: Whether events are sent as they come.
        include_usage: Whether a stream of OpenAI's ends with its usage.
        echo: What the answer repeats of the request (the Responses API does).
        namespaced: (namespace, name) of the functions that came in a namespace, by the name that
            the template shows.
    """

    model: str | None
    tasks: list[Task]
    stream: bool = False
    include_usage: bool = False
    echo: dict[str, Any] = field(default_factory=dict)
    namespaced: dict[str, tuple[str, str]] = field(default_factory=dict)
