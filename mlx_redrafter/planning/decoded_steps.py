"""What steps take as the decoding loop really takes them, beside their parts timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from statistics import median

from ..cache.prompt_cache import PromptCache
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..engine.step import StepRecord
from .costs import CostModel
from .measuring import seconds_of

PLAIN_TOKENS = 16
# Chains that are decoded by turns, and steps of each turn. The first two are left out: one has no
# draft yet, the next may wait for a compiler.
CHAINS = (BeamShape(1, 2), BeamShape(1, 5))
STEPS, LEFT_OUT = 8, 2
# Seconds that a turn may take, as far as there are enough steps in it to tell.
PATIENCE, FEWEST_STEPS = 1.5, 2
# Turns, of which the median counts; where a token takes so many seconds, one.
ROUNDS, LONG_STEP = 3, 0.1


def time_plain(model: SpeculativeModel, cache: PromptCache) -> float:
    """Seconds of a token of plain decoding after a cache's text, which is left as it is.

    One step overlaps with the next, so it is less than a forward by itself takes.
    """
    taken = [_plain_token(model, cache)]
    taken += [_plain_token(model, cache) for _ in range(_rounds(taken[0]) - 1)]
    return median(taken)


def time_around(
    model: SpeculativeModel,
    cache: PromptCache,
    costs: CostModel,
    forward: Callable[[int], Callable[[], object]],
) -> float:
    """Seconds of a step beyond its draft and its forward, as ``costs`` have them.

    In a small model that is a third of a step: the host's work, with which nothing overlaps, and
    weights that draft and target push out of a processor's cache in turns.

    Args:
        model: The model; without a draft head there is nothing to time, nor where so many rows
            cost as much as so many plain steps: no draft pays there, whatever else it takes.
        cache: Holds a text, and is left as it is.
        costs: Of its parts.
        forward: Makes a forward over so many rows, as it was timed for ``costs``: what it takes by
            now says how fast the machine is by now.
    """
    if model.prepared is None or not model.drafts:
        return 0.0
    context, more = len(cache), []
    if all(
        costs.verify_seconds(1 + shape.nodes, context) >= (1 + shape.nodes) * costs.plain[0]
        for shape in CHAINS
    ):
        return 0.0
    for _ in range(_rounds(costs.plain[0])):
        for shape in CHAINS:
            rows = 1 + shape.nodes
            call = forward(rows)
            now = model.agreed(min(seconds_of(call), seconds_of(call)))
            now /= costs.verify_seconds(rows, context)
            expected = costs.step_seconds(shape, context)
            count = max(FEWEST_STEPS, min(STEPS, int(PATIENCE / expected)))
            for record, seconds in _drafted_steps(model, cache, shape, LEFT_OUT + count)[LEFT_OUT:]:
                rejected = float(record.accepted < record.drafted)
                parts = costs.step_seconds(
                    shape, context, nodes=record.drafted, kept=len(record.path), rejected=rejected
                )
                more.append(model.agreed(seconds) / now - parts)
    return max(0.0, median(more)) if more else 0.0


def _rounds(plain: float) -> int:
    """How many turns to take where a plain token takes so many seconds."""
    return ROUNDS if plain <= LONG_STEP else 1


def _plain_token(model: SpeculativeModel, cache: PromptCache) -> float:
    """Median seconds between a few tokens of plain decoding."""
    held = list(cache.tokens)
    config = DecodingConfig(max_tokens=PLAIN_TOKENS, draft=False)
    times = [time.perf_counter() for _ in decode(model, [*held, 0], config, cache=cache)]
    cache.rewind(len(held))
    return model.agreed(median(after - before for before, after in pairwise(times[1:])))


def _drafted_steps(
    model: SpeculativeModel, cache: PromptCache, shape: BeamShape, count: int
) -> list[tuple[StepRecord, float]]:
    """The first steps of a text that is drafted with one shape, and what each took."""
    held = list(cache.tokens)
    config = DecodingConfig(max_tokens=1 + count * (1 + shape.length), beam=shape, copy=False)
    told: list[tuple[StepRecord | None, float]] = []
    with closing(decode(model, [*held, 0], config, cache=cache)) as tokens:
        for token in tokens:
            if not told or token.step is not told[-1][0]:
                told.append((token.step, time.perf_counter()))
            if len(told) > count:
                break
    cache.rewind(len(held))
    return [
        (step, after - before) for (_, before), (step, after) in pairwise(told) if step is not None
    ]
