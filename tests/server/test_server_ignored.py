"""Fields that are accepted without effect: the prompt is the same with and without them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from live_server import Live, ScriptedSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper
from pydantic import BaseModel

from mlx_redrafter.server.protocol.chat_request import ChatRequest
from mlx_redrafter.server.protocol.completions import CompletionRequest
from mlx_redrafter.server.protocol.messages_request import MessagesRequest
from mlx_redrafter.server.protocol.responses_request import ResponsesRequest

ROOT = Path(__file__).resolve().parents[2]

KEPT = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
LOOK = {"name": "look", "description": "Look.", "parameters": SCHEMA}
ASK = [{"role": "user", "content": "please say"}]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COUNT = "/v1/messages/count_tokens"


def chat(tool: dict[str, Any]) -> dict[str, Any]:
    return {"messages": ASK, "tools": [tool]}


def turns(marks: dict[str, Any]) -> dict[str, Any]:
    """A conversation with a call, each part of which may carry a mark."""
    function = {"name": "look", "arguments": "{}", **marks}
    call = {"id": "1", "type": "function", "function": function, **marks}
    parts = [{"type": "text", "text": "it sleeps", **marks}]
    said = {"role": "assistant", "content": None, "tool_calls": [call], **marks}
    return {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief.", **marks}]},
            {**ASK[0], **marks},
            said,
            {"role": "tool", "tool_call_id": "1", "content": parts, **marks},
        ],
        "tools": [{"type": "function", "function": LOOK}],
    }


@pytest.mark.parametrize(
    ("path", "bare", "marked"),
    [
        (
            CHAT,
            chat({"type": "function", "function": LOOK}),
            chat({"type": "function", "function": LOOK, **KEPT}),
        ),
        (
            CHAT,
            chat({"type": "function", "function": LOOK}),
            chat({"type": "function", "function": {**LOOK, **KEPT}}),
        ),
        (CHAT, turns({}), turns(KEPT)),
        (CHAT, {"messages": ASK}, {"messages": ASK, "prompt_cache_options": {"ttl": "24h"}}),
        (
            RESPONSES,
            {"input": "please say", "tools": [{"type": "function", **LOOK}]},
            {"input": "please say", "tools": [{"type": "function", **LOOK, **KEPT}]},
        ),
        (
            RESPONSES,
            {"input": "please say"},
            {
                "input": "please say",
                "prompt_cache_options": {"ttl": "24h"},
                "context_management": [{"type": "compaction", "compact_threshold": 9000}],
            },
        ),
    ],
)
def test_marks_for_the_vendors_cache_do_not_reach_the_prompt(
    live: Live,
    engine: ScriptedSequences,
    path: str,
    bare: dict[str, Any],
    marked: dict[str, Any],
) -> None:
    prompts = []
    for body in (bare, marked):
        made = httpx.post(live.url + path, json=body)
        assert made.status_code == 200, made.text
        prompts.append(engine.added[-1].prompt)
    assert prompts[0] == prompts[1]


def test_what_counts_tokens_takes_what_asks_for_an_answer(live: Live) -> None:
    counts = [
        httpx.post(live.url + COUNT, json={"messages": ASK, **more}).json()
        for more in ({}, {"speed": "fast"})
    ]
    assert counts[0] == counts[1]


def ignored(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[str]:
    """Names of the fields without effect, of a model and of those that it is made of."""
    if model in seen:
        return set()
    seen.add(model)
    names = {name for name, field in model.model_fields.items() if field.exclude}
    for field in model.model_fields.values():
        names |= {name for part in parts(field.annotation) for name in ignored(part, seen)}
    return names


def parts(annotation: Any) -> set[type[BaseModel]]:
    """The models that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for inner in get_args(annotation) for model in parts(inner)}


def test_all_that_is_without_effect_is_told() -> None:
    text = (ROOT / "docs" / "server.md").read_text("utf-8")
    told = text[text.index("- Accepted without effect") :].partition("\n\n")[0]
    for model in (ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest):
        names = ignored(model, set())
        assert names
        assert [name for name in sorted(names) if not re.search(rf"\b{name}`", told)] == []


@pytest.mark.parametrize(
    ("description", "shown"),
    [("Look.", "Look.\\n\\nExamples"), (None, '"Examples')],
)
def test_examples_of_a_tools_input_are_shown_to_the_model(
    live: Live, engine: ScriptedSequences, tokenizer: TokenizerWrapper, description: Any, shown: str
) -> None:
    tool = {"name": "look", "description": description, "input_schema": SCHEMA}
    examples = [{"at": "dog"}, {"at": "\u72ac"}]
    for more, there in (
        ({}, False),
        ({"input_examples": []}, False),
        ({"input_examples": examples}, True),
    ):
        body = {"messages": ASK, "max_tokens": 9, "tools": [tool | more]}
        made = httpx.post(f"{live.url}/v1/messages", json=body)
        assert made.status_code == 200, made.text
        prompt = tokenizer.decode(engine.added[-1].prompt)
        assert (shown in prompt) is there
        assert ("dog" in prompt) is there
