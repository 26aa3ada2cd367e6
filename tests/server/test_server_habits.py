"""What clients send by habit, for the sake of other servers: it is read as what it means there."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_server import Live, ScriptedSequences

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ASK = {"messages": [{"role": "user", "content": "please say"}]}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: ASK,
    COMPLETIONS: {"prompt": "a"},
    MESSAGES: {**ASK, "max_tokens": 9},
    RESPONSES: {"input": "please say"},
}


def answered(live: Live, path: str, **more: Any) -> dict[str, Any]:
    response = httpx.post(live.url + path, json=BODIES[path] | more)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def refused(live: Live, path: str, **more: Any) -> str:
    response = httpx.post(live.url + path, json=BODIES[path] | more)
    assert response.status_code == 400, response.text
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize("path", BODIES)
def test_a_seed_of_minus_one_is_drawn(live: Live, path: str) -> None:
    seeds = {answered(live, path, seed=-1)["redrafter"]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert min(seeds) >= 0


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("seed", "taken"), [(-2, 2**63 - 2), (-(2**63), 0), (0, 0), (2**63 - 1, 2**63 - 1)]
)
def test_every_other_seed_of_64_bits_is_one_and_can_be_asked_for_again(
    live: Live, path: str, seed: int, taken: int
) -> None:
    assert answered(live, path, seed=seed)["redrafter"]["seed"] == taken
    assert answered(live, path, seed=taken)["redrafter"]["seed"] == taken


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (COMPLETIONS, "max_tokens"),
        (RESPONSES, "max_output_tokens"),
    ],
)
def test_a_limit_of_minus_one_is_as_good_as_none(
    live: Live, engine: ScriptedSequences, path: str, field: str
) -> None:
    answered(live, path)
    usual = engine.added[-1].max_tokens
    answered(live, path, **{field: -1})
    assert engine.added[-1].max_tokens == usual
    for none in (0, -2):
        assert refused(live, path, **{field: none}).startswith(f"{field}: input should be greater")


def test_one_limit_of_two_may_be_minus_one(live: Live, engine: ScriptedSequences) -> None:
    answered(live, CHAT, max_tokens=3, max_completion_tokens=-1)
    assert engine.added[-1].max_tokens == 3


def test_messages_need_a_limit(live: Live) -> None:
    assert refused(live, MESSAGES, max_tokens=-1).startswith("max_tokens: input should be greater")


@pytest.mark.parametrize("verbosity", ["low", "medium", "high", None])
def test_verbosity_is_left_unread(live: Live, engine: ScriptedSequences, verbosity: Any) -> None:
    for path, more in (
        (CHAT, {"verbosity": verbosity}),
        (RESPONSES, {"text": {"verbosity": verbosity}}),
    ):
        answered(live, path)
        bare = engine.added[-1].prompt
        answered(live, path, **more)
        assert engine.added[-1].prompt == bare


def test_only_direct_callers_are_taken(live: Live, engine: ScriptedSequences) -> None:
    tool = {"name": "look", "input_schema": {"type": "object"}}
    answered(live, MESSAGES, tools=[tool])
    bare = engine.added[-1].prompt
    answered(live, MESSAGES, tools=[{**tool, "allowed_callers": ["direct"]}])
    assert engine.added[-1].prompt == bare
    coded = {**tool, "allowed_callers": ["direct", "code_execution_20250825"]}
    message = refused(live, MESSAGES, tools=[coded])
    assert message == "tools.0.allowed_callers.1 is not supported here: leave it out."


def test_a_prompt_that_may_be_truncated_is_refused_all_the_same_where_it_is_too_long(
    live: Live,
) -> None:
    assert answered(live, RESPONSES, truncation="auto")["truncation"] == "disabled"
    message = refused(live, RESPONSES, truncation="auto", input="a " * 5000)
    assert message.startswith("prompt is too long: ")
    assert refused(live, RESPONSES, truncation="always").startswith("truncation: ")
