"""Measuring a model's costs on this machine, in seconds.

Forwards of all sizes take turns, round by round, so that what another program adds for a while is
in one round of each and not in all rounds of one: medians then stand side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import mlx.core as mx

from ..cache.prompt_cache import PromptCache
from ..drafting.beam_search import BeamSearch
from ..drafting.prepared_drafter import PreparedDrafter
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..sampling import SamplingConfig
from ..system.device import fuses_drafts
from ..tree import DraftTree
from .costs import CostModel, between

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CONTEXTS = (64, 1024)
WIDTHS = (1, 2, 4, 8)
# Drafts are timed at two lengths: what a level costs, and what a draft costs before the first.
DRAFT_LENGTHS = (2, 8)
REPEATS = 7
WARM_UP = 2
ROUNDS = WARM_UP + REPEATS
# Seconds that one measurement may take, where two calls do not take longer, and that filling a
# further context may take: slow machines are measured more coarsely, not for minutes.
BUDGET = 0.5
PATIENCE = 10.0
PLAIN_TOKENS = 16
# A forward this much dearer than one token's cannot pay, so larger ones are not measured.
HOPELESS = 24.0
# The replay behind a rejected tail is measured on a chain of so many rows, of which so many stay.
REPLAYED = (6, 3)


def calibrate(
    model: SpeculativeModel,
    progress: Callable[[int, int], None] | None = None,
    contexts: Sequence[int] | None = None,
) -> CostModel:
    """Measure a model, and its drafter if it has one, on this machine; takes seconds.

    Args:
        model: A model; drafting is measured where its drafter is a Drafter.
        progress: Told (measurements done, measurements to do).
        contexts: Context lengths, ascending; by default the planner's, as far as they are quickly
            filled.
    """
    patience = PATIENCE if contexts is None else math.inf
    contexts = contexts_of(model) if contexts is None else tuple(contexts)
    total, done = len(contexts) * len(SIZES) * ROUNDS + len(WIDTHS), 0

    def note(measurements: int) -> None:
        nonlocal done
        done += measurements
        if progress is not None:
            progress(min(done, total), total)

    rows: list[list[float]] = []
    plain: list[float] = []
    replay = 0.0
    for context in contexts:
        if rows and rows[0][-1] / SIZES[len(rows[0]) - 1] * context > patience:
            break
        cache = _filled_cache(model, context)
        row = _time_forwards(model, cache, note)
        rows.append(row)
        plain.append(_time_plain(model, cache))
        if model.target.recurrent and context == contexts[0]:
            replay = _time_replay(model, cache) / between(REPLAYED[1], SIZES[: len(row)], row)
    draft, starts = {}, [0.0]
    done = total - len(WIDTHS)
    prepared = model.prepared
    for width in WIDTHS:
        if prepared is not None and width <= prepared.drafter.config.head_size:
            start, draft[width] = _time_draft(model, prepared, width)
            starts.append(start)
        note(1)
    known = min(len(row) for row in rows)
    verify = tuple(tuple(row[:known]) for row in rows)
    # A plain step overlaps with the host's work, so it costs no more than a forward by itself.
    plain = [min(alone, row[0]) for alone, row in zip(plain, verify, strict=True)]
    return CostModel(
        SIZES[:known], contexts[: len(rows)], verify, draft, tuple(plain), replay,
        median(starts[1:] or starts),
    )  # fmt: skip


def contexts_of(model: SpeculativeModel) -> tuple[int, ...]:
    """The context lengths that a model is measured at: all that it was made for."""
    limit = model.context_limit or max(CONTEXTS) + max(SIZES)
    fitting = [context for context in CONTEXTS if context + max(SIZES) <= limit]
    return tuple(fitting or (max(1, limit - max(SIZES)),))


def _filled_cache(model: SpeculativeModel, context: int) -> PromptCache:
    cache = model.make_cache()
    tokens = [token % model.target.vocab_size for token in range(context)]
    for _ in model.target.fill(tokens, cache):
        pass
    return cache


def _time_forwards(
    model: SpeculativeModel, cache: PromptCache, note: Callable[[int], None]
) -> list[float]:
    """Median seconds of a forward over each of ``SIZES``, as far as there is hope.

    Args:
        model: The model.
        cache: Committed tokens before the forwards.
        note: Told of measurements done, ``ROUNDS`` for each size.
    """
    return _in_turns([_forward(model, cache, size) for size in SIZES], note)


def _forward(model: SpeculativeModel, cache: PromptCache, size: int) -> Callable[[], mx.array]:
    """A forward over a chain of so many tokens."""
    tree = DraftTree.from_parents([0] * size, [node - 1 for node in range(size)])
    mx.eval(tree.tokens, tree.depths, tree.ancestors)

    def forward() -> mx.array:
        logits, _ = model.target.verify(tree, cache)
        return mx.argmax(logits, axis=-1)

    return forward


def _in_turns(
    calls: Sequence[Callable[[], mx.array]], note: Callable[[int], None] = lambda _done: None
) -> list[float]:
    """Median seconds of each call, the cheapest first; those behind a hopeless one are left out."""
    taken: list[list[float]] = []
    for call in calls:
        # The shorter of two calls: neither a first call's work nor another program's is a reason.
        if not taken or min(taken[-1]) < HOPELESS * min(taken[0]):
            taken.append([_seconds(call) for _ in range(2)])
        note(2)
    for _ in range(2, ROUNDS):
        for call, seconds in zip(calls, taken, strict=False):
            if sum(seconds) < BUDGET:
                seconds.append(_seconds(call))
        note(len(calls))
    return [_settled(seconds) for seconds in taken]


def _seconds(call: Callable[[], mx.array]) -> float:
    start = time.perf_counter()
    mx.eval(call())
    return time.perf_counter() - start


def _settled(seconds: Sequence[float]) -> float:
    """The median behind the warm-up."""
    return median(seconds[min(WARM_UP, len(seconds) - 1) :])


def _time_replay(model: SpeculativeModel, cache: PromptCache) -> float:
    """Seconds by which a step is longer behind a rejected tail than behind a chain that stayed.

    The two take turns, as the machine drifts.
    """
    held, (rows, kept) = len(cache), REPLAYED
    tree = DraftTree.from_parents([0] * rows, range(-1, rows - 1))
    differences = []
    for _ in range(ROUNDS):
        seconds = []
        for stay in (rows, kept):
            mx.eval(model.target.verify(tree, cache)[0])
            start = time.perf_counter()
            cache.commit(range(stay), [0] * stay)
            mx.eval(model.target.verify(tree, cache)[0])
            seconds.append(time.perf_counter() - start)
            cache.rewind(held)
        differences.append(seconds[1] - seconds[0])
    return max(0.0, median(differences[WARM_UP:]))


def _time_plain(model: SpeculativeModel, cache: PromptCache) -> float:
    """Median seconds between tokens of plain decoding, as the loop really runs it."""
    held = list(cache.tokens)
    config = DecodingConfig(max_tokens=PLAIN_TOKENS, draft=False)
    times = [time.perf_counter() for _ in decode(model, [*held, 0], config, cache=cache)]
    cache.rewind(len(held))
    return median(after - before for before, after in pairwise(times[1:]))


def _time_draft(
    model: SpeculativeModel, prepared: PreparedDrafter, width: int
) -> tuple[float, float]:
    """Seconds of a draft before its first level, and of each level."""
    short, long = (_time_search(model, prepared, BeamShape(width, n)) for n in DRAFT_LENGTHS)
    first, last = DRAFT_LENGTHS
    # Another program's time in one of the two must not make levels free, or drafts.
    level = min(max((long - short) / (last - first), 0.5 * long / last), long / last)
    return long - last * level, level


def _time_search(model: SpeculativeModel, prepared: PreparedDrafter, shape: BeamShape) -> float:
    model.target.take_cores(1 + shape.nodes)  # as in a step that drafts
    embed, sampling = model.target.embed, SamplingConfig()
    search = BeamSearch(prepared, embed, shape, sampling, compiled=fuses_drafts())
    state = model.blank_input(None)
    (seconds,) = _in_turns([lambda: search(state).log_probs])
    return seconds
