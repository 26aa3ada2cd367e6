"""Clients that are slow to ask, or ask and do not read."""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from live_server import Live, eventually, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server import running
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.web import bodies
from mlx_redrafter.server.work import engine_thread, service
from mlx_redrafter.server.work.engine_thread import Companions, EngineThread

RESPONSES = "/v1/responses"
# An answer repeats what it was told of the request: more than any socket holds.
LONG = {"input": "please say", "metadata": {"note": "x" * 6_000_000}}
ONE = ServerSettings(max_concurrent=1, max_queue=0)


@contextmanager
def asking(live: Live, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A client that has asked, and reads nothing."""
    raw = json.dumps(body).encode()
    head = f"POST {RESPONSES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        client.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        yield client


def connections(live: Live) -> int:
    return len(live.server.server_state.connections)


def answered(live: Live) -> bool:
    response = httpx.post(live.url + "/v1/completions", json={"prompt": "on"})
    assert response.status_code in (200, 429)
    return response.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_nobody_reads_holds_no_place(
    tokenizer: TokenizerWrapper, stream: bool
) -> None:
    engine = script(tokenizer)
    with serve_scripted(tokenizer, engine, ONE) as live, asking(live, {**LONG, "stream": stream}):
        assert eventually(lambda: len(engine.added) == 1)
        assert eventually(lambda: answered(live))
        assert eventually(lambda: connections(live) == 1)  # it is still there


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_nobody_takes_is_ended(
    tokenizer: TokenizerWrapper,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(running, "WRITE_SECONDS", 0.3)
    with (
        caplog.at_level(logging.INFO),
        serve_scripted(tokenizer, script(tokenizer)) as live,
        asking(live, {**LONG, "stream": stream}),
    ):
        assert eventually(lambda: connections(live) == 1)
        assert eventually(lambda: connections(live) == 0)
        assert eventually(lambda: not live.server.server_state.tasks)
        assert answered(live)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_one_who_reads_slowly_gets_it_all(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WRITE_SECONDS", 1.0)
    note = "x" * 12_000_000
    body = {**LONG, "metadata": {"note": note}}
    with (
        serve_scripted(tokenizer, script(tokenizer)) as live,
        httpx.stream("POST", live.url + RESPONSES, json=body) as response,
    ):
        size = 0
        for part in response.iter_raw(200_000):
            size += len(part)
            time.sleep(0.05)
    assert response.elapsed.total_seconds() > 2
    assert size == int(response.headers["content-length"]) > len(note)


@pytest.mark.parametrize("path", [RESPONSES, "/v1/messages"])
def test_a_body_that_does_not_come_is_the_clients_fault(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)

    def slowly() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1)
        yield b"}"

    with serve_scripted(tokenizer, script(tokenizer)) as live:
        headers = {"Content-Type": "application/json"}
        response = httpx.post(live.url + path, content=slowly(), headers=headers)
    assert response.status_code == 408
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_does_not_come_does_not_hold_up_the_end(
    tokenizer: TokenizerWrapper, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_scripted(tokenizer, script(tokenizer)) as live, socket.socket() as client:
        client.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        client.sendall(
            b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        assert eventually(lambda: bool(live.server.server_state.tasks))
        live.server.should_exit = True
        client.settimeout(10)
        said = client.recv(4096)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"The server is shutting down." in said + client.recv(4096)
    assert not caplog.records


def test_companions_rest_while_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "REST_SECONDS", 0.05)
    told: list[str] = []
    companions = Companions(*(partial(told.append, word) for word in ("rest", "rouse", "leave")))
    thread = EngineThread(dict, companions)
    thread.start()
    assert eventually(lambda: told == ["rest"])
    assert thread.stop()
    assert told == ["rest", "rouse", "leave"]


def test_answers_that_nobody_waited_for_are_counted(tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(
        tokenizer, script(tokenizer, delay=0.05), ServerSettings(max_concurrent=1)
    ) as live:

        def counted(name: str) -> float:
            lines = httpx.get(live.url + "/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

        long = {"messages": [{"role": "user", "content": "long"}], "n": 3, "stream": True}
        with httpx.stream("POST", live.url + "/v1/chat/completions", json=long):
            assert eventually(lambda: counted("redrafter_between_tokens_seconds_count") > 2)
        assert eventually(lambda: counted("redrafter_running_sequences") == 0)
        assert counted("redrafter_answers_total") == 3
        tokens = counted("redrafter_generated_tokens_total")
        between = counted("redrafter_between_tokens_seconds_count")
        assert tokens > 0
        assert tokens == between + counted("redrafter_first_token_seconds_count")
        assert counted("redrafter_prompt_tokens_total") > 0
        assert counted("redrafter_steps_total") > 0


def test_want_of_files_does_not_fill_the_log(
    tokenizer: TokenizerWrapper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with serve_scripted(tokenizer, script(tokenizer)) as live, ExitStack() as clients:
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", full)
            address = ("127.0.0.1", int(live.url.rpartition(":")[2]))
            for _ in range(40):  # all of them may wait
                clients.enter_context(socket.create_connection(address, timeout=5))
            time.sleep(2.5)
        assert 1 <= len(caplog.records) <= 10
        assert answered(live)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages/count_tokens"])
def test_a_failure_does_not_end_the_connection(
    tokenizer: TokenizerWrapper,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("secret")

    chat = {"messages": [{"role": "user", "content": "please say"}]}
    body: dict[str, Any] = {"prompt": "on"} if path == "/v1/completions" else chat
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw = json.dumps(body)
    asked = f"{head}Content-Length: {len(raw)}\r\n\r\n{raw}".encode()
    with serve_scripted(tokenizer, script(tokenizer)) as live, socket.socket() as client:
        client.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        client.settimeout(10)
        with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
            patched.setattr(service, "encode", broken)
            client.sendall(asked)
            said = client.recv(10_000)
            while b"its log says why" not in said:
                said += client.recv(10_000)
        assert said.startswith(b"HTTP/1.1 500")
        assert "secret" in caplog.text
        client.sendall(asked)
        assert client.recv(10_000).startswith(b"HTTP/1.1 200")


def test_no_prompt_waits_for_a_long_one_to_be_encoded(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, encode = threading.Event(), threading.Event(), service.encode

    def slow(given: TokenizerWrapper, task: Any, *more: Any) -> Any:
        if len(task.prompt) > 1000:
            began.set()
            assert go_on.wait(30)
        return encode(given, task, *more)

    monkeypatch.setattr(service, "encode", slow)
    with serve_scripted(tokenizer, script(tokenizer)) as live:
        long = {"prompt": "on " * service.LONG}
        url = live.url + "/v1/completions"
        client = threading.Thread(target=lambda: httpx.post(url, json=long, timeout=60))
        client.start()
        try:
            assert began.wait(30)
            assert answered(live)
        finally:
            go_on.set()
            client.join()


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_passed_over(
    tokenizer: TokenizerWrapper, caplog: pytest.LogCaptureFixture, offer: str
) -> None:
    """Java's client offers HTTP/2 with each request: that is nothing for the log, and no package
    would change it."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offer, "HTTP2-Settings": "AAMA"}
    with serve_scripted(tokenizer, script(tokenizer)) as live:
        made = httpx.post(live.url + "/v1/completions", json={"prompt": "on"}, headers=headers)
    assert made.status_code == 200
    assert made.http_version == "HTTP/1.1"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
