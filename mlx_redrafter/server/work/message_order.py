"""Conversations as chat templates with stricter rules take them.

Agents put instructions between turns, several messages of one role in a row, and text after the
results of calls. Many templates read that; others raise an error: for a system message after the
first place, for two messages of the user's in a row, or for any system message. Mistral's also
raise one for ids of calls that are not of their own form, and some take only objects for the
arguments of calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..protocol.task import Message
from .call_ids import with_short_ids


def orders(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages as they are, then ever plainer orders of the same texts.

    Every text stays, in its place; only whose it is called changes. Each order comes a second time
    where ids of calls can be renamed.
    """
    yield from _with_ids(messages)
    for plainer in (_later_instructions_said, _joined, _joined_to_results, _instructions_said):
        made = plainer(messages)
        if made != messages:
            messages = made
            yield from _with_ids(messages)


def with_objects(messages: list[Message]) -> list[Message]:
    """The messages with the arguments of all calls as objects, for templates that take no others.

    Arguments that are none become an object that holds them, so that no text is left out.
    """
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": {"arguments": arguments}}}


def _with_ids(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages, then the same with other ids of their calls."""
    yield messages
    renamed = with_short_ids(messages)
    if renamed != messages:
        yield renamed


def _later_instructions_said(messages: list[Message]) -> list[Message]:
    """System messages behind the first other one become the user's."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    later = [{**m, "role": "user"} if m["role"] == "system" else m for m in messages[first:]]
    return messages[:first] + later


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbouring messages of the system's, or of the user's, become one."""
    return _join(messages, {"system": "system", "user": "user"})


def _joined_to_results(messages: list[Message]) -> list[Message]:
    """What the user says behind the result of a call becomes part of that."""
    return _join(messages, {"user": "tool"})


def _instructions_said(messages: list[Message]) -> list[Message]:
    """The system's message becomes the beginning of the user's."""
    return _joined([{**m, "role": "user"} if m["role"] == "system" else m for m in messages])


def _join(messages: list[Message], onto: dict[str, str]) -> list[Message]:
    """Append each message to the one before it, where ``onto`` pairs their roles so."""
    made: list[Message] = []
    for message in messages:
        wanted = onto.get(message["role"])
        if made and wanted == made[-1]["role"]:
            made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n\n{message['content']}"}
        else:
            made.append(message)
    return made
