"""Fields that are accepted without effect: the prompt is the same with and without them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_server import Live, ScriptedSequences

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
