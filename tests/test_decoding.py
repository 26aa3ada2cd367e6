from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import islice, pairwise
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step

import models
from mlx_redrafter import cache as cache_module
from mlx_redrafter import decoding
from mlx_redrafter.beam import BeamShape
from mlx_redrafter.cache import PromptCache, TreeCache
from mlx_redrafter.decoding import DecodedToken, DecodingConfig, StepRecord, decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.model import SpeculativeModel
from mlx_redrafter.sampling import Sampler, SamplingConfig
from mlx_redrafter.statistics import AcceptanceStats
from mlx_redrafter.target import Target
from mlx_redrafter.tree import HostTree

ARCHITECTURE = "llama:sliding"
PROMPT = models.prompt_of(11)
LENGTH = 18
SAMPLED = SamplingConfig(1.0, frequency_penalty=0.5, seed=6)


def plain(
    prompt: list[int], max_tokens: int, sampling: SamplingConfig = SAMPLED, **options: Any
) -> list[int]:
    """A text of the plain loop with cold caches: what every other way has to give."""
    config = DecodingConfig(max_tokens, sampling, draft=False, **options)
    model = SpeculativeModel(models.shared(ARCHITECTURE))
    return [decoded.token for decoded in decode(model, prompt, config)]


TEXT = plain(PROMPT, LENGTH + 8)


def plain_model() -> SpeculativeModel:
    return SpeculativeModel(models.shared(ARCHITECTURE))


def drafting_model(
    prompt: list[int] = PROMPT, text: list[int] = TEXT, *, depth: int = 4, **options: Any
) -> SpeculativeModel:
    """Every step accepts ``depth`` tokens that hide among wrong branches."""
    source = models.ScriptedSource(
        prompt + text, len(prompt), full=True, max_depth=depth, **options
    )
    return SpeculativeModel(models.shared(ARCHITECTURE), source)


KINDS: dict[str, Callable[[], SpeculativeModel]] = {
    "plain": plain_model,
    "drafted": drafting_model,
    "beam search": lambda: SpeculativeModel(models.shared(ARCHITECTURE), models.build_drafter()),
}
KIND = pytest.mark.parametrize("kind", KINDS)


def config_of(max_tokens: int = LENGTH, **options: Any) -> DecodingConfig:
    return DecodingConfig(max_tokens, SAMPLED, beam=BeamShape(3, 3), **options)


def assert_consistent(cache: PromptCache, tokens: list[int]) -> None:
    """The caches hold exactly these tokens, in every layer."""
    assert cache.tokens == tokens
    assert [layer.offset for layer in cache.layers] == [len(tokens)] * len(cache.layers)


def assert_goes_on(cache: PromptCache, held: list[int], new: list[int]) -> None:
    """A further turn on these caches is what cold caches give, and prefills only what is new."""
    prompt = held + new
    told: list[tuple[int, int]] = []
    config = DecodingConfig(8, SAMPLED, draft=False)
    warm = decode(
        plain_model(), prompt, config, cache=cache, progress=lambda *done: told.append(done)
    )
    assert [decoded.token for decoded in warm] == plain(prompt, 8)
    assert told[0] == (len(held), len(prompt) - 1)


# Ends


@pytest.mark.parametrize(
    ("kind", "max_tokens"),
    [
        *(("plain", max_tokens) for max_tokens in (1, 2, 3, LENGTH)),
        *(("drafted", max_tokens) for max_tokens in range(1, 14)),
        *(("beam search", max_tokens) for max_tokens in (1, 2, 7)),
    ],
)
def test_max_tokens_is_exact(kind: str, max_tokens: int) -> None:
    model = KINDS[kind]()
    cache = model.make_cache()
    decoded = list(decode(model, PROMPT, config_of(max_tokens), cache=cache))
    assert [token.token for token in decoded] == TEXT[:max_tokens]
    assert [token.finish_reason for token in decoded] == [None] * (max_tokens - 1) + ["length"]
    assert_consistent(cache, PROMPT + TEXT[: max_tokens - 1])


def ends() -> list[int]:
    """Indices in the text at which a token occurs for the first time."""
    return [index for index in range(LENGTH) if TEXT[index] not in TEXT[:index]]


def test_there_are_ends_within_accepted_runs() -> None:
    steps = {(index - 1) % 5 for index in ends() if index > 0}
    assert steps == set(range(5)), "at each place of a step that yields five tokens"


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *(("plain", end) for end in ends()[:4]),
        *(("drafted", end) for end in ends()),
        *(("beam search", end) for end in ends()[1:6:2]),
    ],
)
def test_end_of_sequence_anywhere(kind: str, end: int) -> None:
    model = KINDS[kind]()
    cache, stats = model.make_cache(), AcceptanceStats()
    config = config_of(eos_token_ids=frozenset({TEXT[end], 10_000}))
    decoded = list(decode(model, PROMPT, config, cache=cache, stats=stats))
    assert [token.token for token in decoded] == TEXT[: end + 1]
    assert [token.finish_reason for token in decoded] == [None] * end + ["stop"]
    assert_consistent(cache, PROMPT + TEXT[:end])
    assert stats.tokens == end
    assert stats.accepted == sum(token.from_draft for token in decoded)
    assert_goes_on(cache, PROMPT + TEXT[:end], [TEXT[end], 7, 3, 9])


def test_end_of_sequence_at_the_last_of_max_tokens_is_a_stop() -> None:
    end = ends()[6]
    for make in KINDS.values():
        config = config_of(end + 1, eos_token_ids=frozenset({TEXT[end]}))
        assert list(decode(make(), PROMPT, config))[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        *(("plain", taken) for taken in (1, 2, 3, 9)),
        *(("drafted", taken) for taken in range(1, 14)),
        *(("beam search", taken) for taken in (1, 2, 7)),
    ],
)
def test_abandoned_anywhere(kind: str, taken: int) -> None:
    model = KINDS[kind]()
    cache = model.make_cache()
    stream = decode(model, PROMPT, config_of(), cache=cache)
    decoded = list(islice(stream, taken))
    stream.close()  # type: ignore[attr-defined]
    assert [token.token for token in decoded] == TEXT[:taken]
    assert_consistent(cache, PROMPT + TEXT[: taken - 1])
    assert_goes_on(cache, PROMPT + TEXT[: taken - 1], [TEXT[taken - 1], 5, 6, 7])


def test_dropping_the_generator_is_enough() -> None:
    model = drafting_model()
    cache = model.make_cache()
    for decoded in decode(model, PROMPT, config_of(), cache=cache):
        if decoded.token == TEXT[7]:
            break
    del decoded
    assert_consistent(cache, PROMPT + TEXT[: TEXT.index(TEXT[7])])


def test_never_begun() -> None:
    model = plain_model()
    cache = model.make_cache()
    decode(model, PROMPT, config_of(), cache=cache).close()  # type: ignore[attr-defined]
    assert_consistent(cache, [])


def test_no_limit() -> None:
    end = ends()[8]
    config = config_of(-1, eos_token_ids=frozenset({TEXT[end]}))
    for make in (plain_model, drafting_model):
        decoded = [token.token for token in decode(make(), PROMPT, config)]
        assert decoded == TEXT[: end + 1]


# Going on from a cache


def test_several_turns_on_one_cache() -> None:
    """Drafted turns, each cut at max_tokens in the middle of a run, equal cold ones."""
    cache, conversation = plain_model().make_cache(), list(PROMPT)
    for turn in range(5):
        wanted = plain(conversation, 20)
        told: list[tuple[int, int]] = []
        stream = decode(
            drafting_model(conversation, wanted, seed=turn),
            conversation,
            config_of(9 + turn),
            cache=cache,
            progress=lambda *done, told=told: told.append(done),
        )
        answer = [decoded.token for decoded in stream]
        assert answer == wanted[: 9 + turn]
        held = len(conversation) - 1 if turn == 0 else 3
        assert told[-1][1] - told[0][0] == (held if turn == 0 else 1 + held - 1)
        conversation += answer
        assert_consistent(cache, conversation[:-1])
        conversation += models.prompt_of(3, seed=turn)


@pytest.mark.parametrize("at", [0, 1, 5, 10, 14, 20])
def test_an_edited_history_is_prefilled_from_the_first_difference(at: int) -> None:
    model = drafting_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(15), cache=cache))
    history = PROMPT + TEXT[:14]
    edited = [*history[:at], (history[at] + 1) % models.VOCAB, *history[at + 1 :], 1, 2, 3]
    assert_goes_on(cache, edited[:at], edited[at:])


def test_the_same_prompt_again_prefills_nothing() -> None:
    model = plain_model()
    cache = model.make_cache()
    for _ in range(2):
        told: list[tuple[int, int]] = []
        stream = decode(
            model,
            PROMPT,
            config_of(5),
            cache=cache,
            progress=lambda *done, told=told: told.append(done),
        )
        assert [decoded.token for decoded in stream] == TEXT[:5]
    assert told == [(len(PROMPT) - 1, len(PROMPT) - 1)]


def test_history_cut_short() -> None:
    model = plain_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(15), cache=cache))
    assert_goes_on(cache, PROMPT[:4], [PROMPT[4]])


# Interruption

# What is interrupted, and at which of its calls, before or after it did its work.
INTERRUPTIONS: list[tuple[Any, str, int]] = [
    *((Target, "prefill", n) for n in (1, 2, 3)),
    *((PromptCache, "extend", n) for n in (1, 3)),
    *((Target, "verify", n) for n in (1, 2, 4)),
    *((TreeCache, "update_and_fetch", n) for n in (1, 4, 7, 8, 11, 15)),
    *((TreeCache, "commit", n) for n in (1, 2, 4, 5)),
    *((PromptCache, "commit", n) for n in (1, 3)),
    *((Sampler, "choose", n) for n in (1, 3)),
    *((mx, "async_eval", n) for n in (1, 3)),
    *((decoding, "_numbers", n) for n in (1, 6)),
    *((AcceptanceStats, "record", n) for n in (1, 3)),
]


def interrupting(function: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise KeyboardInterrupt
        result = function(*args, **kwargs)
        if calls == at:
            raise KeyboardInterrupt
        return result

    return wrapper


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "at"), INTERRUPTIONS, ids=[f"{name}-{at}" for _, name, at in INTERRUPTIONS]
)
@pytest.mark.parametrize("kind", ["plain", "drafted"])
def test_interrupted_anywhere(
    kind: str, owner: Any, name: str, at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS[kind]()
    cache, seen = model.make_cache(), []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupting(getattr(owner, name), at, after))
        stream = decode(model, PROMPT, config_of(prefill_step_size=4), cache=cache)
        with pytest.raises(KeyboardInterrupt):
            seen.extend(decoded.token for decoded in stream)
    assert seen == TEXT[: len(seen)]
    held = list(cache.tokens)
    if seen:
        assert held == (PROMPT + seen)[: len(held)]
        assert len(held) == len(PROMPT) + len(seen) - 1
    else:
        assert held == PROMPT[: len(held)]
        assert len(held) < len(PROMPT)
    assert_consistent(cache, held)
    assert_goes_on(cache, held, [*(PROMPT + TEXT)[len(held) :][:4], 8, 9])


def test_interrupted_in_a_second_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn's tokens stay."""
    model = plain_model()
    cache = model.make_cache()
    list(decode(model, PROMPT, config_of(6), cache=cache))
    history = PROMPT + TEXT[:6]
    with monkeypatch.context() as patch:
        patch.setattr(Target, "prefill", interrupting(Target.prefill, 2, False))
        prompt = [*history, *models.prompt_of(9)]
        stream = decode(model, prompt, config_of(prefill_step_size=4), cache=cache)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert_consistent(cache, prompt[: len(history) - 1 + 4])
    assert_goes_on(cache, list(cache.tokens), [1, 2, 3])


# Prefill


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 23])
@pytest.mark.parametrize("chunk", [1, 8, 2048])
def test_the_prompt_is_cut_as_mlx_lm_does(
    length: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last token, in chunks; the last one is the first step's."""
    model = models.shared(ARCHITECTURE)
    prompt = models.prompt_of(length)
    target = SpeculativeModel(model)
    original, sizes = type(model).__call__, []

    def spy(self: Any, tokens: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        sizes.append(tokens.shape[1])
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(model), "__call__", spy)
    next(decode(target, prompt, DecodingConfig(1, prefill_step_size=chunk)))
    ours = list(sizes)
    sizes.clear()
    next(generate_step(mx.array(prompt), model, max_tokens=1, prefill_step_size=chunk))
    assert ours == sizes[: len(ours)]
    assert sum(ours) == length
    assert ours[-1] == 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 2048])
def test_chunks_do_not_change_the_text(chunk: int) -> None:
    assert plain(PROMPT, 10, prefill_step_size=chunk) == TEXT[:10]


def test_progress() -> None:
    told: list[tuple[int, int]] = []
    config = config_of(1, prefill_step_size=4)
    list(decode(plain_model(), PROMPT, config, progress=lambda *done: told.append(done)))
    assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]


VOCABULARY = 20_000


def wide_model() -> SpeculativeModel:
    return SpeculativeModel(models.build("llama", vocab_size=VOCABULARY))


def test_prefill_computes_no_logits() -> None:
    """Logits of a chunk would take ten times the memory that may be used."""
    model = wide_model()
    prompt = models.prompt_of(514)
    logits_bytes = 512 * VOCABULARY * 4

    def peak(work: Callable[[], None]) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        work()
        return mx.get_peak_memory() - before

    assert peak(lambda: mx.eval(model.target.teach(mx.array([prompt[:512]]))[0])) > logits_bytes
    assert (
        peak(lambda: list(decode(model, prompt, DecodingConfig(1, prefill_step_size=512))))
        < logits_bytes / 4
    )


# Evaluations and memory


class Evaluations:
    """Counts evaluations, and notes what was evaluated and what the loop read back."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.launched: list[set[int]] = []
        self.read: set[int] = set()
        self.waits = 0
        self._alive: list[Any] = []
        launch, wait, numbers = mx.async_eval, mx.eval, decoding._numbers

        def async_eval(*arrays: Any) -> None:
            self.launched.append({id(array) for _, array in tree_flatten(list(arrays))})
            self._alive.append(arrays)
            launch(*arrays)

        def evaluate(*arrays: Any) -> None:
            self.waits += 1
            wait(*arrays)

        def read(array: mx.array) -> tuple[Any, ...]:
            self.read.add(id(array))
            return numbers(array)

        patch.setattr(decoding, "_numbers", read)
        patch.setattr(mx, "async_eval", async_eval)
        patch.setattr(mx, "eval", evaluate)


@KIND
@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
def test_one_evaluation_a_step(
    kind: str, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecodingConfig(LENGTH, sampling, beam=BeamShape(3, 3))
    text = plain(PROMPT, LENGTH + 8, sampling)
    model = drafting_model(text=text) if kind == "drafted" else KINDS[kind]()
    if kind == "beam search":
        model.source(config.beam, sampling)  # its time is taken beforehand
    cache, stats = model.make_cache(), AcceptanceStats()
    list(decode(model, PROMPT[:-1], DecodingConfig(1), cache=cache))
    counted = Evaluations(monkeypatch)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats)
    assert [decoded.token for decoded in stream] == text[:LENGTH]
    # One for the prompt's last token, of which the first token of text comes, then one a step.
    assert len(counted.launched) == 1 + stats.steps == 1 + stats.evaluations
    assert counted.waits == 0
    # What is read back was evaluated with its step; reading evaluates nothing more.
    assert counted.read <= set().union(*counted.launched)
    assert stats.tokens == LENGTH - 1


def test_memory_comes_back_after_a_text() -> None:
    """Nothing of size nodes x vocabulary outlives its step, and nothing but the cache the text."""
    drafter = models.build_drafter(vocab_size=VOCABULARY)
    model = SpeculativeModel(wide_model().target, drafter)
    config = DecodingConfig(12, SamplingConfig(1.0, top_k=40, seed=1), beam=BeamShape(4, 5))
    cache = model.make_cache()
    list(decode(model, PROMPT, config, cache=cache))
    cache.reset()
    mx.synchronize()
    before = mx.get_active_memory()
    held = list(decode(model, PROMPT, config, cache=cache))
    mx.synchronize()
    left = mx.get_active_memory() - before - cache.nbytes
    assert len(held) == 12
    assert left < 20 * VOCABULARY


def test_memory_is_level_while_a_text_is_decoded() -> None:
    drafter = models.build_drafter(vocab_size=VOCABULARY)
    model = SpeculativeModel(wide_model().target, drafter)
    config = DecodingConfig(40, SamplingConfig(1.0, seed=1), beam=BeamShape(4, 5))
    cache, levels, kept = model.make_cache(), [], []
    for decoded in decode(model, PROMPT, config, cache=cache):
        mx.synchronize()
        levels.append(mx.get_active_memory())
        kept.append(decoded)
    # A step's logits are 21 rows; the noise comes in blocks, of which two may be needed at once.
    row = VOCABULARY * 4
    early, late = max(levels[5:20]), max(levels[-15:])
    assert late - early < 16 * row


def test_records_hold_plain_numbers() -> None:
    for make in KINDS.values():
        for decoded in decode(make(), PROMPT, config_of()):
            record = decoded.step
            if record is None:
                continue
            assert {field.name for field in fields(StepRecord)} == {"tree", "choices", "path"}
            assert {type(number) for number in (*record.choices, *record.path)} == {int}
            tree = record.tree
            assert type(tree) is HostTree
            assert {type(number) for number in (*tree.tokens, *tree.parents)} == {int}
            assert {type(number) for number in tree.log_probs} == {float}


@pytest.mark.parametrize("kind", ["plain", "drafted"])
def test_caches_grow_in_blocks_and_windows_stay_bounded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, margin, tree = 32, 24, 13  # no tree of the scripted source has more rows
    monkeypatch.setattr(TreeCache, "step", block)
    monkeypatch.setattr(cache_module, "REWIND_MARGIN", margin)
    prompt = models.prompt_of(30)
    text = plain(prompt, 130, SamplingConfig())
    model = plain_model() if kind == "plain" else drafting_model(prompt, text, depth=6)
    cache = model.make_cache()
    sliding, full = cache.layers
    sizes: list[tuple[int, int]] = []
    for _ in decode(model, prompt, DecodingConfig(120), cache=cache):
        assert sliding.keys is not None
        assert full.keys is not None
        sizes.append((sliding.keys.shape[2], full.keys.shape[2]))
    grown = [after - before for (_, before), (_, after) in pairwise(sizes) if after != before]
    # A block behind what is used, which is up to a tree's rows less than the old buffer.
    assert all(block - tree <= size <= block for size in grown)
    assert 3 <= len(grown) <= 120 // (block - tree)
    assert len(prompt) + 120 <= sizes[-1][1] <= len(prompt) + 120 + 2 * block
    assert max(size for size, _ in sizes) <= models.WINDOW + margin + block


# Records, counts, refusals


@KIND
def test_records_add_up(kind: str) -> None:
    stats = AcceptanceStats()
    decoded = list(decode(KINDS[kind](), PROMPT, config_of(), stats=stats))
    assert decoded[0].step is None
    assert not decoded[0].from_draft
    steps: list[list[DecodedToken]] = []
    for token in decoded[1:]:
        if not steps or steps[-1][0].step is not token.step:
            steps.append([])
        steps[-1].append(token)
    assert len(steps) == stats.steps
    before = decoded[0].token
    for tokens in steps:
        record = tokens[0].step
        assert record is not None
        assert record.tree.tokens[0] == before
        assert len(record.choices) == len(record.tree.tokens) == 1 + record.drafted
        written = [record.choices[node] for node in record.path]
        assert [token.token for token in tokens] == written[: len(tokens)]
        flags = [True] * record.accepted + [False]
        assert [token.from_draft for token in tokens] == flags[: len(tokens)]
        before = tokens[-1].token
    assert stats.drafted == sum(tokens[0].step.drafted for tokens in steps if tokens[0].step)
    assert stats.accepted == sum(token.from_draft for token in decoded)
    assert stats.tokens == len(decoded) - 1
    assert sum(stats.histogram) == stats.steps
    assert sum(n * count for n, count in enumerate(stats.histogram)) == stats.accepted
    if kind == "drafted":
        assert stats.accepted >= 4 * (stats.steps - 1)
    if kind == "plain":
        assert stats.tokens_per_step == 1.0


def test_stats_go_on_from_text_to_text() -> None:
    stats = AcceptanceStats()
    list(decode(plain_model(), PROMPT, config_of(5), stats=stats))
    list(decode(plain_model(), PROMPT, config_of(4), stats=stats))
    assert (stats.steps, stats.tokens) == (4 + 3, 4 + 3)


def test_draft_false_does_not_draft() -> None:
    stats = AcceptanceStats()
    decoded = list(decode(drafting_model(), PROMPT, config_of(draft=False), stats=stats))
    assert [token.token for token in decoded] == TEXT[:LENGTH]
    assert (stats.drafted, stats.accepted, stats.draft_seconds) == (0, 0, 0.0)
    assert not any(token.from_draft for token in decoded)


class Switching:
    """A planner that changes its mind at every step: plain, and several shapes."""

    shapes = (
        None,
        BeamShape(2, 3),
        None,
        None,
        BeamShape(4, 1),
        BeamShape(1, 5),
        BeamShape(5, 4, 6),
    )

    class costs:
        """Nothing costs anything."""

        @staticmethod
        def draft_seconds(shape: BeamShape) -> float:
            return 0.0

    def __init__(self) -> None:
        self.asked: list[BeamShape | None] = []
        self.observed: list[tuple[BeamShape | None, int]] = []

    def for_batch(self, texts: int) -> Switching:
        raise AssertionError("no batch here")

    def next_shape(self, context: int) -> BeamShape | None:
        self.asked.append(self.shapes[len(self.asked) % len(self.shapes)])
        return self.asked[-1]

    def observe(
        self, shape: BeamShape | None, records: Sequence[StepRecord], seconds: float, context: int
    ) -> None:
        assert seconds >= 0
        (record,) = records
        self.observed.append((shape, record.drafted))


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_tokens", [1, 2, 17, 30])
def test_shapes_may_change_from_step_to_step(sampling: SamplingConfig, max_tokens: int) -> None:
    model, planner = KINDS["beam search"](), Switching()
    cache, stats = model.make_cache(), AcceptanceStats()
    config = DecodingConfig(max_tokens, sampling)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats, planner=planner)
    text = [decoded.token for decoded in stream]
    assert text == plain(PROMPT, max_tokens, sampling)
    assert_consistent(cache, PROMPT + text[:-1])
    assert len(planner.observed) == stats.steps
    for (shape, drafted), asked in zip(planner.observed, planner.asked, strict=False):
        assert shape == asked
        assert drafted == (shape.nodes if shape else 0)
    assert stats.tokens == max_tokens - 1


def test_a_planner_is_left_alone_where_nothing_is_drafted() -> None:
    class Unwanted(Switching):
        def next_shape(self, context: int) -> BeamShape | None:
            raise AssertionError("nothing is drafted")

        def observe(self, *_: Any) -> None:
            raise AssertionError("nothing is drafted")

    config = DecodingConfig(6, draft=False)
    stream = decode(KINDS["beam search"](), PROMPT, config, planner=Unwanted())
    assert [decoded.token for decoded in stream] == plain(PROMPT, 6, config.sampling)


def test_a_planner_may_stop_drafting_amid_accepted_runs() -> None:
    class Alternating(Switching):
        shapes = (BeamShape(), BeamShape(), None, None, BeamShape(), None)

    class Following(models.ScriptedSource):
        """Finds its place again after plain steps."""

        def __call__(self, state: Any) -> Any:
            root = int(state.root.item())
            at = len(cache)
            assert (PROMPT + TEXT)[at] == root
            self._at = at
            return super().__call__(state)

    source = Following(PROMPT + TEXT, len(PROMPT), full=True)
    model = SpeculativeModel(models.shared(ARCHITECTURE), source)
    cache, stats = model.make_cache(), AcceptanceStats()
    config = DecodingConfig(LENGTH, SAMPLED)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats, planner=Alternating())
    assert [decoded.token for decoded in stream] == TEXT[:LENGTH]
    assert stats.accepted >= 8
    assert_consistent(cache, PROMPT + TEXT[: LENGTH - 1])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "prompt is empty"), ([1, models.VOCAB], "outside the vocabulary"), ([-1], "outside")],
)
def test_bad_prompts_are_refused_at_once(prompt: list[int], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        decode(plain_model(), prompt)


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", 0), ("max_tokens", -2), ("prefill_step_size", 0)]
)
def test_bad_limits_are_refused(name: str, value: int) -> None:
    with pytest.raises(RedrafterError, match=f"{name} is {value}"):
        DecodingConfig(**{name: value})


def test_what_does_not_fit_the_model_is_refused_at_once() -> None:
    """Before anything is computed: the call raises, not the first token."""
    with pytest.raises(RedrafterError, match="top_k"):
        decode(plain_model(), PROMPT, DecodingConfig(sampling=SamplingConfig(1.0, top_k=1000)))
    with pytest.raises(RedrafterError, match="beam width"):
        decode(KINDS["beam search"](), PROMPT, DecodingConfig(beam=BeamShape(width=100)))


@pytest.mark.parametrize(("what", "sizes"), [("hidden size", (16, 64)), ("vocabulary", (32, 60))])
def test_a_drafter_of_another_size_is_refused(what: str, sizes: tuple[int, int]) -> None:
    drafter = models.build_drafter(hidden_size=sizes[0], vocab_size=sizes[1])
    with pytest.raises(RedrafterError, match=what):
        SpeculativeModel(models.shared(ARCHITECTURE), drafter)


def test_decode_yields_lazily() -> None:
    stream: Iterator[DecodedToken] = decode(plain_model(), PROMPT, config_of(-1))
    assert [decoded.token for decoded in islice(stream, 3)] == TEXT[:3]
