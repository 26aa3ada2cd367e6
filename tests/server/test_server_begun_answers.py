"""Answers that a client has begun, where the chat template trims each message, as Llama's does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundles import make_tokenizer
from live_server import Live, ScriptedSequences
from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_redrafter.server.protocol.task import Conversation, Task
from mlx_redrafter.server.work.prompts import encode

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content SPACE}}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)


def tokenizer_with(directory: Path, template: str) -> TokenizerWrapper:
    make_tokenizer(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"chat_template": template}
    path.write_text(json.dumps(config), "utf-8")
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    return tokenizer_with(tmp_path_factory.mktemp("trims"), TEMPLATE.replace("SPACE", "| trim "))


def told(live: Live, begun: Any, **more: Any) -> Any:
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": begun}]
    body = {"messages": turns, "max_tokens": 99, **more}
    made = httpx.post(f"{live.url}/v1/messages", json=body)
    assert made.status_code == 200, made.text
    return made


@pytest.mark.parametrize(
    ("begun", "said", "left"),
    [
        ("The ", " dog", "dog"),
        ("The\n\n", "\n\ndog", "dog"),
        ("The\n\n", "\ndog", "dog"),
        ("The\n", "\n\n dog", "\n dog"),
        ("The ", "\ndog", "\ndog"),
        ("The", " dog", " dog"),
        ("The ", " ", ""),
    ],
)
def test_space_that_the_client_has_is_not_said_again(
    live: Live,
    engine: ScriptedSequences,
    tokenizer: TokenizerWrapper,
    begun: str,
    said: str,
    left: str,
) -> None:
    engine.answer = lambda _: list(tokenizer.encode(said, add_special_tokens=False))
    assert "".join(part["text"] for part in told(live, begun).json()["content"]) == left
    lines = told(live, begun, stream=True).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line[:5] == "data:"]
    deltas = [event["delta"].get("text", "") for event in events if "delta" in event]
    assert "".join(deltas) == left
    assert told(live, begun, stop_sequences=["\n"]).json()["stop_reason"] == (
        "stop_sequence" if "\n" in left else "end_turn"
    )


@pytest.mark.parametrize("begun", ["", " ", "\n", [], [{"type": "text", "text": "\n"}]])
def test_a_blank_beginning_is_none(live: Live, engine: ScriptedSequences, begun: Any) -> None:
    told(live, begun)
    with_blank = engine.added[-1].prompt
    turns = [{"role": "user", "content": "say"}]
    httpx.post(f"{live.url}/v1/messages", json={"messages": turns, "max_tokens": 99})
    assert with_blank == engine.added[-1].prompt


@pytest.mark.parametrize(("begun", "initial"), [("The", "normal"), ("", "header")])
def test_an_answer_that_is_begun_has_its_header(
    tokenizer: TokenizerWrapper, begun: str, initial: str
) -> None:
    muse = TokenizerWrapper(tokenizer._tokenizer, response_format=RESPONSE_FORMAT)
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": begun}]
    encoded = encode(muse, Task(Conversation(turns, continue_last=True)), len(tokenizer))
    assert encoded.initial == initial


def test_space_that_the_template_keeps_is_not_waited_for(tmp_path: Path) -> None:
    keeping = tokenizer_with(tmp_path, TEMPLATE.replace("SPACE", ""))
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "The "}]
    encoded = encode(keeping, Task(Conversation(turns, continue_last=True)), len(keeping))
    assert keeping.decode(encoded.ids).endswith("The ")
    assert encoded.left_out == ""
