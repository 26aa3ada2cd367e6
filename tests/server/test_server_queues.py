"""How many may wait, and what they hold meanwhile: of each model its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from live_server import Live, eventually, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.work import service

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "on " * 100}]}
SHORT = {"messages": [{"role": "user", "content": "please say"}]}


@contextmanager
def endless(live: Live, model: str) -> Iterator[None]:
    """An answer of a model that goes on inside the block."""
    ask = {"messages": [{"role": "user", "content": "long"}], "model": model, "stream": True}
    with httpx.stream("POST", live.url + CHAT, json=ask, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        yield


def test_a_model_whose_queue_is_full_keeps_no_other_from_answering(
    tokenizer: TokenizerWrapper,
) -> None:
    settings = ServerSettings(max_concurrent=1, max_queue=0)
    names = ("one", "two")
    with (
        serve_scripted(
            tokenizer, lambda: script(tokenizer, delay=0.05), settings, names=names
        ) as live,
        endless(live, "one"),
    ):
        state = httpx.get(f"{live.url}/status").json()
        assert state["max_concurrent"] == 2
        assert [model["running"] for model in state["models"]] == [1, 0]
        assert httpx.post(live.url + CHAT, json={**SHORT, "model": "one"}).status_code == 429
        assert httpx.post(live.url + CHAT, json={**SHORT, "model": "two"}).status_code == 200


class Encoding:
    """Encodes long prompts once it may.

    Attributes:
        began: How many have begun.
        go_on: Lets them.
    """

    def __init__(self) -> None:
        self.began = 0
        self.go_on = threading.Event()
        self._encode = service.encode

    def __call__(self, tokenizer: TokenizerWrapper, task: Any, *more: Any) -> Any:
        if len(str(task.prompt)) > service.LONG:
            self.began += 1
            assert self.go_on.wait(30)
        return self._encode(tokenizer, task, *more)


@pytest.fixture
def encoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoding]:
    monkeypatch.setattr(service, "LONG", 250)
    made = Encoding()
    monkeypatch.setattr(service, "encode", made)
    yield made
    made.go_on.set()


@contextmanager
def asking(live: Live, path: str, times: int) -> Iterator[list[Future[httpx.Response]]]:
    """So many clients with a long prompt each."""
    with ThreadPoolExecutor(times) as pool:
        client = httpx.Client(limits=httpx.Limits(max_connections=None), timeout=60)
        yield [pool.submit(client.post, live.url + path, json=LONG) for _ in range(times)]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages/count_tokens"])
def test_long_prompts_hold_one_thread_however_many_wait(
    tokenizer: TokenizerWrapper, encoding: Encoding, path: str
) -> None:
    """Of 40 that there are for all requests."""
    with (
        serve_scripted(tokenizer, script(tokenizer)) as live,
        asking(live, path, 60) as long,
    ):
        assert eventually(lambda: encoding.began == 1)
        time.sleep(0.5)  # the others have come, too
        assert httpx.post(live.url + CHAT, json=SHORT, timeout=10).status_code == 200
        assert encoding.began == 1
        encoding.go_on.set()
        assert {made.result(60).status_code for made in long} == {200}


def test_who_is_refused_is_not_encoded_first(
    tokenizer: TokenizerWrapper, encoding: Encoding
) -> None:
    settings = ServerSettings(max_concurrent=1, max_queue=1)
    with (
        serve_scripted(tokenizer, script(tokenizer), settings) as live,
        asking(live, CHAT, 2) as long,
    ):
        assert eventually(lambda: encoding.began == 1)

        def refuses(body: dict[str, Any]) -> bool:
            return httpx.post(live.url + CHAT, json=body, timeout=10).status_code == 429

        # Both have their places, though one of them is not encoded yet.
        assert eventually(lambda: refuses(SHORT))
        assert refuses(LONG)
        assert encoding.began == 1
        encoding.go_on.set()
        assert [made.result(60).status_code for made in long] == [200, 200]
        assert httpx.post(live.url + CHAT, json=SHORT).status_code == 200


def test_a_prompt_that_cannot_be_encoded_leaves_its_place(tokenizer: TokenizerWrapper) -> None:
    settings = ServerSettings(max_concurrent=1, max_queue=0)
    with serve_scripted(tokenizer, script(tokenizer), settings, context=9) as live:
        for _ in range(3):
            refused = httpx.post(live.url + CHAT, json=SHORT)
            assert refused.json()["error"]["code"] == "context_length_exceeded"
