"""Measuring a model's costs on this machine, in seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import mlx.core as mx

from ..cache.prompt_cache import PromptCache
from ..drafting.beam_search import BeamSearch
from ..drafting.prepared_drafter import PreparedDrafter
from ..drafting.shape import BeamShape
from ..engine.model import SpeculativeModel
from ..sampling import SamplingConfig
from ..system.device import fuses_drafts
from ..tree import DraftTree, HostTree
from .costs import CostModel, interpolated
from .decoded_steps import time_around, time_plain
from .forecast import path_rows
from .measuring import LONGEST, Timings, time_in_turns, timings_of

# Matrix kernels work in tiles of 4, 5, 8 or 16 rows, which end or begin at these.
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 16, 20, 24, 32, 64)
CONTEXT = 64
# Sizes whose forwards are timed where a text has grown long: what a context adds is a slope.
LATER_SIZES = (1, 4, 8, 16, 32)
WIDTHS = (1, 2, 4, 8)
# Drafts are timed at two lengths: what a level costs, and what a draft costs before the first.
DRAFT_LENGTHS = (2, 8)
# Seconds that filling a further context may take.
PATIENCE = 10.0
# A forward that costs so many times one token's cannot pay, so larger ones are not measured; where
# contexts are asked for, it is the curve itself that is of interest, and more of it is measured.
HOPELESS = 10.0
HOPELESS_CURVE = 24.0
# The replay after a rejected tail is measured on a chain of so many rows, of which so many stay.
REPLAYED = (6, 3)
REPLAY_ROUNDS, REPLAY_WARM_UP = 9, 2
# A tree for the price of paths: so many nodes in a row, and after them so many side by side.
STEM, LEAVES = 7, 8


def calibrate(
    model: SpeculativeModel,
    progress: Callable[[int, int], None] | None = None,
    contexts: Sequence[int] | None = None,
) -> CostModel:
    """Measure a model, and its drafter if it has one, on this machine; takes seconds.

    Args:
        model: A model; drafting is measured where its drafter is a Drafter.
        progress: Called with (measurements done, measurements to do).
        contexts: Context lengths, ascending; by default a short one. What costs are at others is
            measured when a text gets there, see :func:`calibrate_there`.
    """
    patience = PATIENCE if contexts is None else math.inf
    hopeless = HOPELESS if contexts is None else HOPELESS_CURVE
    contexts = contexts_of(model) if contexts is None else tuple(contexts)
    forwards = len(contexts) * timings_of(len(SIZES))
    total, done = forwards + len(WIDTHS) + 1, 0

    def note(measurements: int, most: int = forwards) -> None:
        nonlocal done
        done = min(done + measurements, most)  # what is measured again is not counted
        if progress is not None:
            progress(done, total)

    rows: list[Timings] = []
    plain: list[float] = []
    replay = path_row = 0.0
    first = _filled_cache(model, contexts[0])
    for context in contexts:
        if rows and rows[0].seconds[-1] / SIZES[len(rows[0].seconds) - 1] * context > patience:
            break
        cache = _filled_cache(model, context) if rows else first
        row = time_in_turns(
            [_forward(model, cache, size) for size in SIZES],
            hopeless=hopeless,
            note=note,
            agreed=model.agreed,
        )
        plain.append(time_plain(model, cache))
        if model.target.recurrent and not rows:
            kept = interpolated(REPLAYED[1], SIZES[: len(row.seconds)], row.seconds)
            replay = _time_replay(model, cache) / kept
            path_row = _time_path_row(model, cache)
        rows.append(row)
    done = forwards
    draft, draft_start, doubtful = _time_drafts(model, lambda more: note(more, total))
    known = min(len(row.seconds) for row in rows)
    verify = tuple(row.seconds[:known] for row in rows)
    # A plain step overlaps with the host's work, so it costs no more than a forward by itself.
    plain = [min(alone, row[0]) for alone, row in zip(plain, verify, strict=True)]
    costs = CostModel(
        SIZES[:known], contexts[: len(rows)], verify, draft, tuple(plain), replay, draft_start,
        path_row, doubtful=doubtful or any(row.doubtful for row in rows),
    )  # fmt: skip
    around = time_around(model, first, costs, partial(_forward, model, first))
    note(1, total)
    return replace(costs, around=around)


def calibrate_there(model: SpeculativeModel, costs: CostModel, cache: PromptCache) -> CostModel:
    """Costs with those of forwards after a text that is in a cache, which is left as it is.

    Where they were known all are brought up to date; else the context is one more that is known.
    Takes a fraction of the time that reading such a text took.

    Args:
        model: The model.
        costs: What is known so far.
        cache: Holds the text; nothing is pending in it.
    """
    context = len(cache)
    sizes = [size for size in LATER_SIZES if size in costs.sizes]
    if cache.changes_within(max(sizes)):
        return costs
    timed = time_in_turns([_forward(model, cache, size) for size in sizes], agreed=model.agreed)
    # Where the first few calls took very long there are no others: what they add is unknown.
    seconds = dict(zip(sizes, timed.seconds, strict=False))
    if costs.knows(context):
        # They have changed as a whole: two contexts that lie close together would make a slope.
        changed = costs.scaled(
            {n: s / costs.verify_seconds(n, context) for n, s in seconds.items()}
        )
    else:
        changed = costs.with_context(context, seconds)
    return changed.doubted() if timed.doubtful or len(seconds) < len(sizes) else changed


def contexts_of(model: SpeculativeModel) -> tuple[int, ...]:
    """The context length that a model is measured at before any text is known."""
    limit = model.context_limit or CONTEXT + max(SIZES)
    return (max(1, min(CONTEXT, limit - max(SIZES))),)


def _filled_cache(model: SpeculativeModel, context: int) -> PromptCache:
    cache = model.make_cache()
    tokens = [token % model.target.vocab_size for token in range(context)]
    for _ in model.target.fill(tokens, cache):
        pass
    return cache


def _forward(model: SpeculativeModel, cache: PromptCache, size: int) -> Callable[[], None]:
    """A forward over a chain of so many tokens."""
    return _verify(model, cache, [node - 1 for node in range(size)])


def _verify(
    model: SpeculativeModel, cache: PromptCache, parents: Sequence[int]
) -> Callable[[], None]:
    """A forward over a tree."""
    tree = DraftTree.from_parents([0] * len(parents), parents)
    mx.eval(tree.tokens, tree.depths, tree.ancestors)

    def forward() -> None:
        logits, _ = model.target.verify(tree, cache)
        mx.eval(mx.argmax(logits, axis=-1))

    return forward


def _time_path_row(model: SpeculativeModel, cache: PromptCache) -> float:
    """Seconds of a row that recurrent modules run for a tree beyond one a node."""
    if model.target.verifies != "tree":
        return 0.0
    parents = [*range(-1, STEM), *[STEM] * LEAVES]
    chain = [node - 1 for node in range(len(parents))]
    tree = HostTree((0,) * len(parents), tuple(parents), (0.0,) * len(parents))
    timed = time_in_turns(
        [_verify(model, cache, chain), _verify(model, cache, parents)], agreed=model.agreed
    )
    more = path_rows(tree) - (len(parents) - 1)
    return max(0.0, timed.seconds[1] - timed.seconds[0]) / more


def _time_replay(model: SpeculativeModel, cache: PromptCache) -> float:
    """Seconds by which a step is longer after a rejected tail than after a chain that stayed.

    The two take turns, as the machine drifts.
    """
    held, (rows, kept) = len(cache), REPLAYED
    tree = DraftTree.from_parents([0] * rows, range(-1, rows - 1))
    differences = []
    for _ in range(REPLAY_ROUNDS):
        seconds = []
        for stay in (rows, kept):
            mx.eval(model.target.verify(tree, cache)[0])
            start = time.perf_counter()
            cache.commit(range(stay), [0] * stay)
            mx.eval(model.target.verify(tree, cache)[0])
            seconds.append(model.agreed(time.perf_counter() - start))
            cache.rewind(held)
        differences.append(seconds[1] - seconds[0])
    return max(0.0, median(differences[REPLAY_WARM_UP:]))


def _time_drafts(
    model: SpeculativeModel, note: Callable[[int], None]
) -> tuple[dict[int, float], float, bool]:
    """Seconds of a drafted level by width, those before a draft's first, and whether to doubt.

    Widths after what took too long, such as a compiler, are left out: a level is taken to cost so
    much more as it is wider, then.
    """
    levels: dict[int, float] = {}
    starts, doubts = [0.0], False
    began = time.perf_counter()
    for width in WIDTHS:
        prepared = model.prepared
        if levels and model.agreed(time.perf_counter() - began) > LONGEST:
            doubts = True
        elif prepared is not None and width <= prepared.drafter.config.head_size:
            start, levels[width], doubtful = _time_draft(model, prepared, width)
            starts.append(start)
            doubts = doubts or doubtful
        note(1)
    return levels, median(starts[1:] or starts), doubts


def _time_draft(
    model: SpeculativeModel, prepared: PreparedDrafter, width: int
) -> tuple[float, float, bool]:
    """Seconds of a draft before its first level, of each level, and whether to doubt them."""
    first, last = DRAFT_LENGTHS
    searches = [_search(model, prepared, BeamShape(width, length)) for length in DRAFT_LENGTHS]
    timed = time_in_turns(searches, agreed=model.agreed)
    short, long = timed.seconds
    # Another program's time in one of the two must not make levels free, or drafts.
    level = min(max((long - short) / (last - first), 0.5 * long / last), long / last)
    return long - last * level, level, timed.doubtful


def _search(
    model: SpeculativeModel, prepared: PreparedDrafter, shape: BeamShape
) -> Callable[[], None]:
    embed, sampling = model.target.embed, SamplingConfig()
    search = BeamSearch(prepared, embed, shape, sampling, compiled=fuses_drafts())
    state = model.blank_input(None)

    def draft() -> None:
        model.target.take_cores(1 + shape.nodes)  # as in a step that drafts
        mx.eval(search(state).log_probs)

    return draft
