"""Servers for tests: a real one on a loopback port, before scripted or real engines."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from bundles import make_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_redrafter.server.metrics import Metrics
from mlx_redrafter.server.running import make_server
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.web.app import make_app
from mlx_redrafter.server.work.engine_thread import EngineThread
from mlx_redrafter.server.work.host import Host
from mlx_redrafter.server.work.sequences import (
    Decoding,
    NewToken,
    PromptRead,
    SequenceEvent,
    SequenceFailed,
    StepShape,
)
from mlx_redrafter.server.work.service import Encoder, ServedModel, Service
from mlx_redrafter.text.structured import prepare

TOOL_TEMPLATE = (
    "{% if tools %}<|system|>Call with <tool_call>...</tool_call>: {{ tools | tojson }}<|end|>"
    "{% endif %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m['content'] }}"
    "{% for tool_call in m.tool_calls or [] %}<tool_call>{{ tool_call.name }}"
    "{{ tool_call | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tool_tokenizer(directory: Path) -> TokenizerWrapper:
    """A byte-level tokenizer whose template knows tools and thinking."""
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer(directory)
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(str(directory))
    plain.add_tokens(["<think>", "</think>"])
    plain.chat_template = TOOL_TEMPLATE
    plain.save_pretrained(str(directory))
    (directory / "tokenizer_config.json").write_text(
        (directory / "tokenizer_config.json").read_text("utf-8").replace("\\ud800", ""), "utf-8"
    )
    return load_tokenizer(directory)


@dataclass
class _Scripted:
    decoding: Decoding
    tokens: list[int]
    done: int = 0
    read: bool = False
    steps: int = 0


@dataclass
class ScriptedSequences:
    """An engine that says what it was told to, two tokens a step.

    Attributes:
        answer: Tokens of the answer to a prompt; an exception is the sequence's own failure.
        eos: Ends an answer that is not cut off.
        delay: Seconds of a step.
        reading: Pieces in which a prompt is read.
        crash: Called before every step; may raise.
        stopped: Sequences that were stopped before their end.
        kept: Tokens that every prompt is known to begin with.
        drafts: Whether it says that it drafted.
    """

    answer: Callable[[Decoding], list[int] | Exception]
    eos: int
    delay: float = 0.0
    reading: int = 1
    crash: Callable[[], None] = lambda: None
    stopped: list[int] = field(default_factory=list)
    added: list[Decoding] = field(default_factory=list)
    most: int = 0
    kept: int = 0
    drafts: bool = True
    _all: dict[int, _Scripted] = field(default_factory=dict)

    def add(self, decoding: Decoding) -> int:
        self.added.append(decoding)
        answer = self.answer(decoding)
        number = len(self.added)
        self._all[number] = _Scripted(decoding, [] if isinstance(answer, Exception) else answer)
        if isinstance(answer, Exception):
            self._all[number].tokens = [-1]
            self._error = answer
        return number

    def known(self, prompt: list[int]) -> int:
        return self.kept

    def step(self) -> Iterator[SequenceEvent]:
        time.sleep(self.delay)
        self.crash()
        self.most = max(self.most, len(self._all))
        for number, one in list(self._all.items()):
            if one.tokens == [-1]:
                yield SequenceFailed(number, self._error)
            elif not one.read:
                total = len(one.decoding.prompt)
                for piece in range(1, self.reading + 1):
                    time.sleep(self.delay if self.reading > 1 else 0)
                    yield PromptRead(number, total * piece // self.reading, total, total // 2)
                one.read = True
            else:
                yield from self._tokens(number, one)

    def _tokens(self, number: int, one: _Scripted) -> Iterator[SequenceEvent]:
        text = [*one.tokens, self.eos][: one.decoding.max_tokens]
        new = text[one.done : one.done + 2]
        shape = StepShape((text[max(0, one.done - 1)], *new[:1], 5), (-1, 0, 0), (0, 1)[: len(new)])
        one.steps += 1
        for place, token in enumerate(new):
            one.done += 1
            last = one.done == len(text)
            reason = None if not last else "stop" if token == self.eos else "length"
            logprob = None if one.decoding.logprobs is None else -0.5
            top = tuple((t, -0.5) for t in range(5, 5 + (one.decoding.logprobs or 0)))
            yield NewToken(
                number,
                token,
                "own" if place == len(new) - 1 else "guessed",
                reason,
                logprob,
                top,
                shape if place == 0 else None,
            )

    def stop(self, sequence: int) -> None:
        one = self._all.pop(sequence, None)
        if one is not None and one.done < len(one.tokens):
            self.stopped.append(sequence)

    def statistics(self, sequence: int) -> dict[str, Any]:
        steps = self._all[sequence].steps
        drafted = steps * self.drafts
        return {
            "steps": steps,
            "drafted": 2 * drafted,
            "accepted": drafted,
            "tokens": 2 * steps,
            "tokens_per_step": 2.0,
            "acceptance_by_depth": [0.8, 0.4] if self.drafts else [],
            "draft_seconds": 0.0,
            "verify_seconds": steps * 0.01,
        }

    def plain_tokens_per_second(self, context: int) -> float | None:
        return 50.0

    @property
    def cache_bytes(self) -> int:
        return 0


@dataclass
class Live:
    """A server that runs.

    Attributes:
        url: To call it.
        thread: Its engine's.
        server: uvicorn's.
    """

    url: str
    thread: EngineThread
    server: uvicorn.Server


def scripted_model(
    name: str,
    tokenizer: TokenizerWrapper,
    host: Host,
    context: int | None = 4096,
    guesses: bool = True,
    copies: bool = True,
) -> ServedModel:
    encoders = Encoder(tokenizer), Encoder(copy.deepcopy(tokenizer))
    compile_schema = partial(prepare, tokenizer)
    return ServedModel(
        name, host, *encoders, len(tokenizer), compile_schema, context, guesses, copies
    )


@contextmanager
def serve_scripted(
    tokenizer: TokenizerWrapper,
    sequences: ScriptedSequences | Callable[[], ScriptedSequences],
    settings: ServerSettings | None = None,
    *,
    names: tuple[str, ...] = ("tiny",),
    context: int | None = 4096,
    guesses: bool = True,
    copies: bool = True,
) -> Iterator[Live]:
    """A server before a scripted engine."""
    settings = settings or ServerSettings()
    metrics = Metrics()
    make = sequences if callable(sequences) else lambda: sequences
    thread = EngineThread(
        lambda: {
            name: Host(name, tokenizer, make, settings.max_concurrent, metrics) for name in names
        }
    )
    thread.start()
    models = {
        name: scripted_model(name, tokenizer, thread.hosts[name], context, guesses, copies)
        for name in names
    }
    with serve(thread, models, settings, metrics) as live:
        yield live


@contextmanager
def serve(
    thread: EngineThread,
    models: dict[str, ServedModel],
    settings: ServerSettings,
    metrics: Metrics,
) -> Iterator[Live]:
    """A server in a thread of this process, on a free port."""
    settings = replace(settings, grace=min(settings.grace, 2.0))
    app = make_app(Service(thread, models, settings), metrics)
    ready = threading.Event()
    server = make_server(app, settings, ready.set, thread.end)
    listener = socket.create_server(("127.0.0.1", 0))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    running.start()
    assert ready.wait(20)
    try:
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", thread, server)
    finally:
        server.should_exit = True
        running.join(10)
        thread.stop()
        assert not running.is_alive()


def openai_client(live: Live) -> Any:
    """OpenAI's own client of a server, which asks once."""
    import openai

    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something holds; returns whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def at_once(ask: Callable[[int], None], clients: int, seconds: float) -> None:
    """Ask as so many clients at the same time, each told its number; what one raises is raised."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients), timeout=seconds))
