"""What a planner hears of texts that an engine decodes, and what is left when they are over."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import pytest
from decoding_cases import ScriptedPlanner

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken, PromptRead
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.planner_lock import PlannerLock
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.shared_planner import SharedPlanner
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step_timer import StepTimer
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.headless_planner import HeadlessPlanner
from mlx_redrafter.sampling import SamplingConfig

PROMPTS = [models.prompt_of(length, seed=length) for length in (5, 33, 1, 18)]


def model_of(*, draft: bool = True) -> SpeculativeModel:
    target = models.shared("llama")
    return SpeculativeModel(target, models.build_drafter(seed=1) if draft else None)


@dataclass
class Listener(ScriptedPlanner):
    """A planner that drafts nothing, has patience, and notes what it hears."""

    patience: int = 0
    shape: BeamShape | None = None
    begun: list[tuple[int, float]] = field(default_factory=list)
    among: list[bool] = field(default_factory=list)
    heard: list[ObservedStep] = field(default_factory=list)

    def for_batch(self, sequences: int) -> Any:
        return self

    def begin(self, cache: PromptCache, temperature: float, *, among: bool = False) -> None:
        self.begun.append((len(cache), temperature))
        self.among.append(among)

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self.shape, patience=self.patience)

    def observe(self, step: ObservedStep) -> None:
        self.heard.append(step)

    @property
    def steps(self) -> int:
        return sum(step.repeats for step in self.heard)


def no_copies(max_tokens: int, **options: Any) -> DecodingConfig:
    return DecodingConfig(max_tokens, copy=False, **options)


@pytest.mark.parametrize("together", [True, False])
def test_a_planner_hears_of_every_text_that_begins(*, together: bool) -> None:
    """Also of a prompt of one token, of one read in pieces, and of one that a cache holds."""
    planner, model = Listener(), model_of()
    held = model.make_cache()
    list(decode(model, PROMPTS[3], no_copies(1), cache=held))
    engine = Engine(model, batch_size=4 if together else 1, planner=planner)
    for prompt, temperature in zip(PROMPTS, (0.0, 0.7, 1.0, 0.3), strict=True):
        config = no_copies(4, sampling=SamplingConfig(temperature), prefill_step_size=16)
        engine.add(prompt, config, cache=held if prompt is PROMPTS[3] else None)
    while engine.busy:
        engine.step()
    wanted = [(len(p) - 1, t) for p, t in zip(PROMPTS, (0.0, 0.7, 1.0, 0.3), strict=True)]
    assert sorted(planner.begun) == sorted(wanted)
    # Those that began together are read while none has ended; the last of them ends first.
    assert planner.among == ([False, True, True, True] if together else [False] * 4)


def test_a_planner_hears_that_a_text_ended_before_another_began() -> None:
    """Also where others were under way all the while, and where it ended while it was read."""
    planner = Listener()
    engine = Engine(model_of(), batch_size=2, planner=planner)
    lengths = (30, 3, 3, 3)
    for limit in lengths:
        engine.add(PROMPTS[1], no_copies(limit, prefill_step_size=8))
    finish(engine)
    assert planner.among == [False, True, False, False]


def test_a_text_that_ends_while_the_next_is_read_is_not_among_it() -> None:
    planner = Listener()
    engine = Engine(model_of(), planner=planner)
    engine.add(PROMPTS[0], no_copies(3))
    while not any(isinstance(event, NewToken) for event in engine.step()):
        pass
    engine.add(PROMPTS[1], no_copies(3, prefill_step_size=4))
    finish(engine)
    assert planner.among == [False, False]


@pytest.mark.parametrize("how", ["length", "stop", "abandoned"])
def test_a_planner_hears_of_every_plain_step_whose_text_is_over(how: str) -> None:
    """However long its patience: the next text's steps are told of by another loop."""
    planner, model = Listener(patience=64), model_of()
    text = [one.token for one in decode(model, PROMPTS[0], no_copies(12, draft=False))]
    ends = frozenset({text[-1]}) if how == "stop" and text.index(text[-1]) == 11 else frozenset()
    limit = 12 if how == "length" else 40
    stats = AcceptanceStats()
    stream = decode(
        model, PROMPTS[0], no_copies(limit, eos_token_ids=ends), planner=planner, stats=stats
    )
    for place, _ in enumerate(stream):
        if how == "abandoned" and place == 11:
            break
    stream.close()
    assert planner.steps == stats.steps
    assert stats.steps >= 11
    assert planner.heard[0].repeats > 1, "several were told of together, the first among them"


class OneForAll(Listener):
    """A planner with one for several texts, whatever their number."""

    def __init__(self) -> None:
        super().__init__(patience=64)
        self.several = Listener(patience=64)

    def for_batch(self, sequences: int) -> Any:
        return self if sequences == 1 else self.several


def test_plain_steps_of_a_batch_are_told_of_together() -> None:
    planner = OneForAll()
    engine = Engine(model_of(), planner=planner, prompts_first=True)
    for prompt in PROMPTS:
        engine.add(prompt, no_copies(30))
    while engine.busy:
        engine.step()
    assert planner.several.steps >= 28
    assert len(planner.several.heard) < planner.several.steps / 3


def test_what_fills_up_a_batch_is_no_draft() -> None:
    planner = Listener(shape=BeamShape(2, 3))
    engine = Engine(model_of(), planner=planner, prompts_first=True)
    drafting, plain = AcceptanceStats(), AcceptanceStats()
    engine.add(PROMPTS[0], no_copies(12), stats=drafting)
    engine.add(PROMPTS[1], no_copies(12, draft=False), stats=plain)
    shapes = []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, NewToken) and event.decoded.step:
                shapes.append((event.sequence, event.decoded.step.drafted))
    assert drafting.drafted > 0
    assert plain.drafted == 0
    assert plain.plain_steps == plain.steps == 11
    assert {drafted for number, drafted in shapes if number == 1} == {0}


@pytest.mark.parametrize("leave", ["end", "stop"])
def test_an_engine_keeps_nothing_of_texts_that_are_over(leave: str) -> None:
    """Before the next step, which may be long in coming."""
    engine = Engine(model_of(), prompts_first=True)
    numbers = [engine.add(prompt, no_copies(6)) for prompt in PROMPTS]
    kept = [weakref.ref(engine.sequence(number)) for number in numbers]
    engine.step()
    if leave == "stop":
        for number in numbers:
            engine.stop(number)
    while engine.busy:
        engine.step()
    gc.collect()
    assert [one() for one in kept] == [None] * len(kept)


def test_what_a_text_leaves_of_a_batch_is_known_to_be_of_these_weights() -> None:
    model = SpeculativeModel(models.build("llama"))
    kept: list[PromptCache] = []
    engine = Engine(model, keep=kept.append, prompts_first=True)
    for prompt in PROMPTS[:2]:
        engine.add(prompt, no_copies(8))
    while engine.busy:
        engine.step()
    cache = next(one for one in kept if one.tokens[: len(PROMPTS[1])] == PROMPTS[1])
    layer = model.target.model.model.layers[0]
    layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * mx.array(3.0)
    read: list[tuple[int, int]] = []
    following = [*cache.tokens, 7]
    for _ in decode(
        model, following, no_copies(2), cache=cache, progress=lambda *done: read.append(done)
    ):
        pass
    assert read[0] == (0, len(following) - 1), "nothing is gone on from"


@pytest.mark.parametrize("where", ["keep", "planner"])
def test_an_engine_goes_on_after_an_error_of_the_callers(where: str) -> None:
    """Whoever left is gone, and what is added then is decoded."""

    class Failing(Listener):
        def observe(self, step: ObservedStep) -> None:
            if failing:
                raise RuntimeError("told to fail")
            super().observe(step)

    def keep(cache: PromptCache) -> None:
        if failing and where == "keep":
            raise RuntimeError("told to fail")
        kept.append(cache)

    kept: list[PromptCache] = []
    failing = False
    planner = Failing() if where == "planner" else None
    engine = Engine(model_of(), keep=keep, planner=planner, prompts_first=True)
    first, second = (engine.add(prompt, no_copies(20)) for prompt in PROMPTS[:2])
    for _ in range(3):
        engine.step()
    failing = True
    with pytest.raises(RuntimeError, match="told to fail"):
        engine.stop(first) if where == "keep" else finish(engine)
    failing = False
    finish(engine)
    third = engine.add(PROMPTS[2], no_copies(4))
    made = []
    while engine.busy:
        for event in engine.step():
            assert isinstance(event, PromptRead) or event.sequence in (second, third)
            made += [event] if isinstance(event, NewToken) and event.sequence == third else []
    assert len(made) == 4
    assert kept, "what texts leave is kept again"


def test_a_step_takes_no_less_than_no_time() -> None:
    """What a prompt took meanwhile is not taken off a step that never was under way."""
    timer = StepTimer()
    timer.begin()
    timer.spend_elsewhere(1000.0)
    timer.begin()
    assert timer.count(timer.began) < 100.0
    timer.begin()
    timer.spend_elsewhere(1000.0)
    assert timer.count(timer.began) == 0.0
    assert 0.0 <= timer.count(timer.began) < 100.0


def test_a_text_is_closed_while_another_thread_is_at_the_planner() -> None:
    """Whoever closes it may hold what that thread waits for: the planner need not hear of it."""
    planner, model = Listener(patience=64), model_of()
    stream = decode(model, PROMPTS[0], no_copies(30), planner=planner)
    for _ in range(8):
        next(stream)
    heard = planner.steps
    with model.planner_lock:
        closing = threading.Thread(target=stream.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
    assert planner.steps == heard


def test_a_text_is_collected_in_the_midst_of_a_planners_work() -> None:
    """The collector comes when it likes: what it closes is not told to a planner at work."""
    model = model_of()

    class Collecting(Listener):
        at_work = disturbed = False

        def observe(self, step: ObservedStep) -> None:
            self.disturbed |= self.at_work
            self.at_work = True
            gc.collect()
            self.at_work = False
            super().observe(step)

    planner = Collecting(patience=64)
    gc.disable()
    try:
        cycle: list[Any] = [decode(model, PROMPTS[0], no_copies(30), planner=planner)]
        cycle.append(cycle)
        for _ in range(8):
            next(cycle[0])
        del cycle
        planner.patience = 0
        list(decode(model, PROMPTS[1], no_copies(8), planner=planner))
    finally:
        gc.enable()
    assert planner.steps >= 7
    assert not planner.disturbed


def test_ranks_hear_nothing_of_what_an_abandoned_text_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The collector of each closes it at another step."""
    planner, model = Listener(patience=64), model_of()
    stream = decode(model, PROMPTS[0], no_copies(30), planner=planner)
    for _ in range(8):
        next(stream)
    heard = planner.steps
    monkeypatch.setattr(model, "ranks", object())
    stream.close()
    assert planner.steps == heard


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()


COSTS = CostModel((1, 2, 32), (64,), ((1.0, 1.1, 2.0),), {}, (1.0,))
CHANCES = [0.9] * 8


def test_threads_measure_a_machine_once() -> None:
    measured, inside = [], threading.Event()

    def measure() -> CostModel:
        measured.append(threading.get_ident())
        inside.wait(0.2)  # another thread would come in
        return COSTS

    planner = SharedPlanner(HeadlessPlanner(measure), PlannerLock())
    asking = [
        threading.Thread(target=planner.copies.num_nodes, args=(CHANCES, 64)) for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(measured) == 1


def test_planners_of_batches_are_the_same_each_time() -> None:
    planner = SharedPlanner(HeadlessPlanner(lambda: COSTS), PlannerLock())
    assert planner.for_batch(1) is planner
    assert planner.for_batch(3) is planner.for_batch(3)
    assert planner.for_batch(3) is not planner.for_batch(2)
