"""The server before the real engine: each text is the one that it has alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import openai
import pytest
from bundles import make_bundle
from live_server import Live, at_once, eventually, openai_client, serve

import models
from mlx_redrafter import generate, load
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.server.loading import ModelSpec, load_models
from mlx_redrafter.server.metrics import Metrics
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.work.engine_sequences import EngineSequences
from mlx_redrafter.server.work.prefix_cache import PrefixCache
from mlx_redrafter.server.work.sequences import Decoding, NewToken, PromptRead
from mlx_redrafter.system.own_models import pocket_path
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import HostTree
from models import prompt_of

EOS = 5
TOKENIZER: Any = SimpleNamespace(eos_token_ids={EOS})


@cache
def model(kind: str) -> SpeculativeModel:
    target = Target(models.mamba() if kind == "mamba" else models.shared(kind))
    drafter = models.build_drafter() if target.refusal is None else None
    return SpeculativeModel(target, drafter)


def sequences(kind: str, memory: int = 1 << 28, step: int = 16) -> EngineSequences:
    return EngineSequences(
        model(kind), TOKENIZER, PrefixCache(memory), max_concurrent=4, prefill_step_size=step
    )


def alone(kind: str, decoding: Decoding) -> list[int]:
    config = DecodingConfig(
        max_tokens=decoding.max_tokens,
        sampling=SamplingConfig(**decoding.sampling),
        draft=decoding.draft,
        eos_token_ids=frozenset({EOS}),
        beam=BeamShape(),
    )
    return [token.token for token in decode(model(kind), decoding.prompt, config)]


def some(rng: np.random.Generator, number: int) -> Decoding:
    """A request; some share long beginnings."""
    family = int(rng.integers(0, 3))
    prompt = prompt_of(40 + 9 * family, seed=family)[: int(rng.integers(20, 60))]
    prompt += prompt_of(int(rng.integers(1, 12)), seed=100 + number)
    sampling: dict[str, Any] = {"seed": number}
    if number % 3:
        sampling |= {"temperature": 0.8, "top_p": 0.9}
    if number % 4 == 1:
        sampling |= {"repetition_penalty": 1.2, "logit_bias": ((7, -100.0), (9, 1.5))}
    most = int(rng.integers(1, 14))
    prompt += prompt[-8:] if number % 2 else []
    return Decoding(prompt, most, sampling, draft=number % 5 != 2, copies=number % 2 == 1)


@pytest.mark.parametrize("kind", ["llama", "llama:sliding", "phi3:longrope", "mamba"])
@pytest.mark.parametrize("seed", [1, 2])
def test_joining_and_leaving_at_random_changes_no_text(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = sequences(kind)
    wanted = [some(rng, number) for number in range(12)]
    texts: dict[int, list[int]] = {}
    asked: dict[int, Decoding] = {}
    left: set[int] = set()
    ended: set[int] = set()
    waiting = list(wanted)
    while waiting or asked.keys() - ended - left:
        under_way = asked.keys() - ended - left
        while waiting and len(under_way) < 4 and rng.random() < 0.5:
            decoding = waiting.pop(0)
            number = engine.add(decoding)
            asked[number], texts[number] = decoding, []
            under_way = asked.keys() - ended - left
        if under_way and rng.random() < 0.06:
            gone = int(rng.choice(sorted(under_way)))
            left.add(gone)
            engine.stop(gone)
        for event in engine.step():
            if isinstance(event, NewToken) and event.sequence not in left:
                texts[event.sequence].append(event.token)
                if event.finish_reason is not None:
                    ended.add(event.sequence)
                    engine.stop(event.sequence)
            assert isinstance(event, NewToken | PromptRead)
    assert len(ended) >= 6
    for number, decoding in asked.items():
        whole = alone(kind, decoding)
        assert texts[number] == (whole[: len(texts[number])] if number in left else whole)


def test_prompts_that_begin_alike_are_read_once() -> None:
    engine = sequences("llama")
    shared = prompt_of(48)
    seen = []
    for number in range(3):
        decoding = Decoding([*shared, number + 1], 5, {"seed": 0})
        name = engine.add(decoding)
        tokens = []
        while not tokens or tokens[-1].finish_reason is None:
            for event in engine.step():
                if isinstance(event, PromptRead):
                    seen.append(event.cached)
                else:
                    assert isinstance(event, NewToken)
                    tokens.append(event)
        engine.stop(name)
        assert [token.token for token in tokens] == alone("llama", decoding)
    assert seen[0] == 0
    assert seen[-1] == len(shared)
    assert engine.cache_bytes > 0


def test_the_plain_speed_is_not_what_was_measured_beforehand() -> None:
    costs = CostModel((1, 2), (64,), ((1.0, 1.1),), {}, (1.0,))
    made = SpeculativeModel(model("llama").target, None)
    made.planner = HeadlessPlanner(lambda: costs)
    engine = EngineSequences(
        made, TOKENIZER, PrefixCache(0), max_concurrent=1, prefill_step_size=16
    )
    assert made.planner.costs is costs
    assert engine.plain_tokens_per_second(64) is None
    plain = StepRecord(HostTree((0,), (-1,), (0.0,)), (0,), (0,))
    for _ in range(60):
        made.planner.observe(ObservedStep(None, [plain], 2.0, 64))
    assert engine.plain_tokens_per_second(64) == pytest.approx(0.5, rel=0.1)


def test_a_long_prompt_is_read_between_the_steps_of_others() -> None:
    engine = sequences("llama", step=8)
    engine.add(Decoding(prompt_of(4), 40, {"seed": 0, "logit_bias": ((EOS, -1000.0),)}))
    while not any(isinstance(event, NewToken) for event in engine.step()):
        pass
    long = engine.add(Decoding(prompt_of(60, seed=3), 2, {"seed": 0}))
    steps = []
    while not any(
        e.sequence == long for events in steps for e in events if isinstance(e, NewToken)
    ):
        steps.append(list(engine.step()))
    reading = [events for events in steps if any(isinstance(e, PromptRead) for e in events)]
    assert len(reading) >= 6
    assert sum(any(isinstance(e, NewToken) for e in events) for events in reading) >= 5


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    engine = sequences("llama", step=8)
    long = engine.add(Decoding(prompt_of(70, seed=3), 2, {"seed": 0}))
    assert list(engine.step())
    short = engine.add(Decoding(prompt_of(6, seed=4), 2, {"seed": 0}))
    first: list[int] = []
    while len(set(first)) < 2:
        first += [event.sequence for event in engine.step() if isinstance(event, NewToken)]
    assert first[0] == short
    assert long in first


def test_requests_that_begin_alike_wait_for_the_first_to_be_read(live: Live) -> None:
    client = openai_client(live)
    story = "the quick brown fox jumps over the lazy dog. " * 12
    cached: list[int] = []

    def ask(place: int) -> None:
        made = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"{story} number {place}"}],
            max_tokens=8,
        )
        cached.append(made.usage.prompt_tokens_details.cached_tokens)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(tokens < 100 for tokens in cached) == 1, "the beginning is read once"


def test_nothing_comes_of_a_sequence_that_left_within_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = sequences("llama")
    real, made = engine._engine.step, []
    monkeypatch.setattr(engine._engine, "step", lambda: made.append(real()) or made[-1])
    number = engine.add(Decoding(prompt_of(8) * 6, 60, {"seed": 0}, copies=True))
    left = False
    while not left:
        for event in engine.step():
            assert not left
            if isinstance(event, NewToken) and len(made[-1]) > 2:  # some of them were guessed
                engine.stop(number)
                left = True
    kept = [held for held in vars(engine).values() if isinstance(held, dict)]
    assert kept == [{}] * len(kept)


def test_log_probabilities_are_the_targets() -> None:
    decoding = Decoding(prompt_of(12), 6, {"seed": 0}, logprobs=2)
    engine = sequences("llama")
    engine.add(decoding)
    tokens: list[NewToken] = []
    while not tokens or tokens[-1].finish_reason is None:
        tokens += [event for event in engine.step() if isinstance(event, NewToken)]
    text = [token.token for token in tokens]
    assert text == alone("llama", decoding)
    ids = mx.array([[*decoding.prompt, *text]])
    logits = models.shared("llama")(ids)[0, len(decoding.prompt) - 1 : -1]
    wanted = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for place, token in enumerate(tokens):
        assert token.logprob == pytest.approx(wanted[place, token.token].item(), abs=1e-4)
        best = mx.argsort(-wanted[place])[:2].tolist()
        assert [other for other, _ in token.top] == best
        assert token.top[0][1] >= token.top[1][1]


# ---- over HTTP


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_bundle(tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def live(bundle: str) -> Iterator[Live]:
    yield from serving(ModelSpec(bundle, plan=False), ServerSettings(cache_memory=1 << 26))


@pytest.fixture(scope="module")
def pocket() -> Iterator[Live]:
    yield from serving(ModelSpec(str(pocket_path()), plan=False), ServerSettings())


def serving(spec: ModelSpec, settings: ServerSettings) -> Iterator[Live]:
    metrics = Metrics()
    settings = replace(settings, sampling={"temperature": 0.0})
    thread, served = load_models([spec], settings, metrics)
    with serve(thread, served, settings, metrics) as live:
        yield live


def test_eight_at_once_say_what_each_says_alone(live: Live, bundle: str) -> None:
    loaded, tokenizer = load(bundle, plan=False)
    questions = [f"the dog number {place} does" for place in range(8)]
    texts: dict[int, str] = {}

    def run(place: int) -> None:
        stream = openai_client(live).chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": questions[place]}],
            temperature=0.9 * (place % 2),
            seed=place,
            max_tokens=24,
            stream=True,
        )
        deltas = [chunk.choices[0].delta for chunk in stream]
        texts[place] = "".join(delta.content or "" for delta in deltas)

    at_once(run, 8, seconds=60)
    for place, question in enumerate(questions):
        wanted = generate(
            loaded,
            tokenizer,
            [{"role": "user", "content": question}],
            temperature=0.9 * (place % 2),
            seed=place,
            max_tokens=24,
        )
        assert texts[place] == wanted


def test_a_conversation_finds_what_it_has_said(pocket: Live) -> None:
    client = openai_client(pocket)
    messages = [{"role": "user", "content": "What does itertools.chain do?"}]
    first = client.chat.completions.create(model="pocket", messages=messages, max_tokens=60)
    text = first.choices[0].message.content
    loaded, tokenizer = load(pocket_path(), plan=False)
    assert text == generate(loaded, tokenizer, messages, max_tokens=60)
    messages += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "What does itertools.chain do?"},
    ]
    second = client.chat.completions.create(model="pocket", messages=messages, max_tokens=20)
    known = second.usage.prompt_tokens_details.cached_tokens
    assert known >= first.usage.total_tokens - 4
    assert second.choices[0].message.content == generate(loaded, tokenizer, messages, max_tokens=20)
    assert first.redrafter["steps"] >= 1


def test_a_client_that_leaves_stops_its_sequence(live: Live) -> None:
    body = {
        "messages": [{"role": "user", "content": "go"}],
        "stream": True,
        "max_tokens": 400,
        "logit_bias": {"0": -100},
    }
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    assert eventually(lambda: running(live) == 0, 5)


def test_a_step_that_fails_ends_what_was_under_way_only(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = openai_client(live)
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the dog does not mind"}],
        "max_tokens": 12,
    }
    before = client.chat.completions.create(**asked).choices[0].message.content
    real, failures = Target.verify, [RuntimeError("[malloc] Unable to allocate at 0xdead")]

    def verify(self: Target, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Target, "verify", verify)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**asked)
    assert "0xdead" not in str(caught.value.body)
    assert client.chat.completions.create(**asked).choices[0].message.content == before
    assert httpx.get(f"{live.url}/health").status_code == 200


def running(live: Live) -> float:
    state = httpx.get(f"{live.url}/status").json()
    return float(state["models"][0]["running"])


def test_many_requests_leave_memory_as_it_was(live: Live) -> None:
    client = openai_client(live)

    def ask(number: int) -> None:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"what does {number % 7} do"}],
            max_tokens=6,
        )

    def rounds(count: int) -> None:
        threads = [
            threading.Thread(target=lambda: [ask(n) for n in range(count)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    rounds(10)
    assert eventually(lambda: running(live) == 0)
    before = mx.get_active_memory()
    rounds(15)
    assert eventually(lambda: running(live) == 0)
    assert mx.get_active_memory() <= before + (1 << 20)
    metrics = httpx.get(f"{live.url}/metrics").text
    kept = next(line for line in metrics.splitlines() if line.startswith("redrafter_prefix_cache"))
    assert float(kept.split()[-1]) <= 1 << 26
