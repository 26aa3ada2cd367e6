"""What steps cost on this machine: measured once for a model, kept in the user's cache directory.

Drafting pays only where checking n tokens at once costs much less than n steps, and that is a
property of the machine, the model and its precision, so it is measured and never assumed.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .beam import BeamSearch, BeamShape, DraftState
from .blas import is_loaded, usable_cores
from .cache import PromptCache
from .decoding import DecodingConfig, decode
from .drafter import Drafter
from .files import write_json
from .limits import context_limit
from .machine import processor_name
from .model import SpeculativeModel, on_gpu
from .sampling import SamplingConfig
from .tree import DraftTree

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CONTEXTS = (64, 1024)
WIDTHS = (1, 2, 4, 8)
# Drafts are timed at two lengths: what a level costs, and what a draft costs before the first.
DRAFT_LENGTHS = (2, 8)
REPEATS = 7
WARM_UP = 2
# Seconds that one measurement may take, where two calls do not take longer, and that filling a
# further context may take: slow machines are measured more coarsely, not for minutes.
BUDGET = 0.5
PATIENCE = 10.0
PLAIN_TOKENS = 16
# A forward this much dearer than one token's cannot pay, so larger ones are not measured.
HOPELESS = 24.0
# The replay behind a rejected tail is measured on a chain of so many rows, of which so many stay.
REPLAYED = (6, 3)
FORMAT = 7


@dataclass(frozen=True)
class CostModel:
    """Seconds of the parts of a step.

    Attributes:
        sizes: Numbers of tokens whose forward was measured, ascending from 1.
        contexts: Context lengths they were measured at, ascending.
        verify: Seconds of a forward, one row a context, one column a size.
        draft: Seconds a drafted level costs, by beam width.
        plain: Seconds of a token of plain decoding at each context. Less than a forward over one
            token, since plain steps overlap with the host's work.
        draft_start: Seconds that a draft costs before its first level, such as reading the tokens
            before the root.
        replay: What it costs to bring recurrent state back behind a rejected tail, as a share of a
            forward over the rows that stay; 0 where there is none to bring back.
    """

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    draft: Mapping[int, float]
    plain: tuple[float, ...]
    replay: float = 0.0
    draft_start: float = 0.0

    def verify_seconds(self, tokens: int, context: int) -> float:
        """Seconds of a forward over ``tokens`` tokens behind ``context``, interpolated."""
        columns = [_between(tokens, self.sizes, row) for row in self.verify]
        if tokens > self.sizes[-1]:
            columns = [seconds * tokens / self.sizes[-1] for seconds in columns]
        return _between(context, self.contexts, columns)

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a beam search; widths in between are interpolated."""
        return self.draft_start + self._level_seconds(shape.width) * shape.length

    def _level_seconds(self, width: int) -> float:
        widths = sorted(self.draft)
        level = _between(width, widths, [self.draft[known] for known in widths])
        return level * max(1.0, width / widths[-1])

    def step_seconds(
        self, shape: BeamShape | None, context: int, *, kept: float = 1.0, rejected: float = 0.0
    ) -> float:
        """Seconds of a step: plain where ``shape`` is None, else drafting and verifying.

        Args:
            shape: What is drafted.
            context: Tokens before the step.
            kept: Rows of the step that stay, the root counted.
            rejected: The chance that not all rows stay, and recurrent state is brought back.
        """
        if shape is None:
            return _between(context, self.contexts, self.plain)
        seconds = self.draft_seconds(shape) + self.verify_seconds(1 + shape.nodes, context)
        if self.replay:
            seconds += rejected * self.replay * self.verify_seconds(max(1, round(kept)), context)
        return seconds

    def for_batch(self, texts: int) -> CostModel:
        """What steps cost that ``texts`` texts take together.

        A forward then has ``texts`` times the rows, a beam search so many times the beams, and a
        plain step is a forward over one row of each text. What attention reads of each text's
        context is counted once, so long contexts cost more than this says.
        """
        if texts == 1:
            return self
        verify = tuple(
            tuple(self.verify_seconds(texts * size, context) for size in self.sizes)
            for context in self.contexts
        )
        draft = {width: self._level_seconds(width * texts) for width in sorted(self.draft)}
        plain = tuple(row[0] for row in verify)
        return CostModel(
            self.sizes, self.contexts, verify, draft, plain, self.replay, self.draft_start
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "sizes": list(self.sizes),
            "contexts": list(self.contexts),
            "verify": [list(row) for row in self.verify],
            "plain": list(self.plain),
            "replay": self.replay,
            "draft_start": self.draft_start,
            "draft": {str(width): seconds for width, seconds in self.draft.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CostModel:
        """Inverse of :meth:`to_dict`."""
        return cls(
            sizes=tuple(value["sizes"]),
            contexts=tuple(value["contexts"]),
            verify=tuple(tuple(row) for row in value["verify"]),
            plain=tuple(value["plain"]),
            replay=float(value["replay"]),
            draft_start=float(value["draft_start"]),
            draft={int(width): seconds for width, seconds in value["draft"].items()},
        )


def _between(x: float, known: Sequence[float], values: Sequence[float]) -> float:
    """A value interpolated at x; outside of what is known the nearest.

    As numpy's interp, which takes several times as long for a single number, and is asked for at
    every step.
    """
    right = bisect_right(known, x)
    if right in (0, len(known)):
        return values[min(right, len(known) - 1)]
    low, high = known[right - 1], known[right]
    share = (x - low) / (high - low)
    return values[right - 1] + share * (values[right] - values[right - 1])


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
    report = progress or (lambda _done, _total: None)
    patience = PATIENCE if contexts is None else math.inf
    contexts = contexts_of(model) if contexts is None else tuple(contexts)
    total, done = len(contexts) * len(SIZES) + len(WIDTHS), 0
    rows: list[list[float]] = []
    plain: list[float] = []
    replay = 0.0
    for context in contexts:
        if rows and rows[0][-1] / SIZES[len(rows[0]) - 1] * context > patience:
            break
        cache = _filled_cache(model, context)
        row: list[float] = []
        for size in SIZES:
            if not row or row[-1] < HOPELESS * row[0]:
                row.append(_time_verify(model, cache, size))
            done += 1
            report(done, total)
        rows.append(row)
        plain.append(_time_plain(model, cache))
        if model.target.verifies == "chain" and context == contexts[0]:
            replay = _time_replay(model, cache) / _between(REPLAYED[1], SIZES[: len(row)], row)
    done, draft, starts = total - len(WIDTHS), {}, [0.0]
    for width in WIDTHS:
        if isinstance(model.drafter, Drafter) and width <= model.drafter.config.head_size:
            start, draft[width] = _time_draft(model, model.drafter, width)
            starts.append(start)
        done += 1
        report(done, total)
    known = min(len(row) for row in rows)
    verify = tuple(sensible(row[:known]) for row in rows)
    # A plain step overlaps with the host's work, so it costs no more than a forward by itself.
    plain = [min(alone, row[0]) for alone, row in zip(plain, verify, strict=True)]
    return CostModel(
        SIZES[:known], contexts[: len(rows)], verify, draft, tuple(plain), replay,
        median(starts[1:] or starts),
    )  # fmt: skip


def sensible(seconds: Sequence[float]) -> tuple[float, ...]:
    """Times of ever larger forwards without what other programs added: never above a larger's."""
    return tuple(np.minimum.accumulate(np.array(seconds)[::-1])[::-1].tolist())


def load_costs(
    model: SpeculativeModel,
    directory: Path | None = None,
    *,
    recalibrate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CostModel:
    """The stored costs of this model on this machine, measured and stored where there are none.

    Args:
        model: A model whose drafter is a Drafter.
        directory: Where costs are kept; the user's cache directory by default.
        recalibrate: Measure again.
        progress: See :func:`calibrate`.
    """
    path = (directory or cache_directory()) / f"costs-{machine_key(model)}.json"
    if not recalibrate:
        stored = _read(path)
        if stored is not None:
            return stored
    costs = calibrate(model, progress)
    with suppress(OSError):  # a read-only home only means measuring again next time
        write_json(path, {"format": FORMAT, "machine": machine(model), "costs": costs.to_dict()})
    return costs


def cache_directory() -> Path:
    """Where measurements are kept between runs."""
    return Path.home() / ".cache" / "mlx_redrafter"


def machine(model: SpeculativeModel) -> dict[str, Any]:
    """What the costs depend on: machine, device, mlx, model, precision."""
    parameters = tree_flatten(model.target.model.parameters())
    drafter = model.drafter if isinstance(model.drafter, Drafter) else None
    head = tree_flatten(drafter.parameters()) if drafter else []
    return {
        "machine": f"{platform.system()} {platform.machine()} {processor_name()}",
        "cores": usable_cores(),
        "device": str(mx.default_device()),
        "device_info": str(mx.device_info().get("device_name", "")),
        "mlx": version("mlx"),
        "openblas": is_loaded(),
        "model": model.name,
        "target": _shapes(parameters),
        "drafter": _shapes(head),
        "lookback": drafter.config.lookback if drafter else 0,
    }


def machine_key(model: SpeculativeModel) -> str:
    """A short name for :func:`machine`."""
    text = json.dumps(machine(model), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shapes(parameters: Any) -> str:
    """A digest of names, shapes and dtypes: the same for all weights that cost the same."""
    text = ";".join(f"{name}{tuple(value.shape)}{value.dtype}" for name, value in parameters)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> CostModel | None:
    try:
        value = json.loads(path.read_text("utf-8"))
        return CostModel.from_dict(value["costs"]) if value.get("format") == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # measured again


def contexts_of(model: SpeculativeModel) -> tuple[int, ...]:
    """The context lengths that a model is measured at: all that it was made for."""
    limit = context_limit(model.target.model) or max(CONTEXTS) + max(SIZES)
    fitting = [context for context in CONTEXTS if context + max(SIZES) <= limit]
    return tuple(fitting or (max(1, limit - max(SIZES)),))


def _filled_cache(model: SpeculativeModel, context: int) -> PromptCache:
    cache = model.make_cache()
    tokens = [token % model.target.vocab_size for token in range(context)]
    for _ in model.target.fill(tokens, cache):
        pass
    return cache


def _median_seconds(call: Callable[[], mx.array]) -> float:
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < WARM_UP + REPEATS and sum(seconds) < BUDGET):
        start = time.perf_counter()
        mx.eval(call())
        seconds.append(time.perf_counter() - start)
    return median(seconds[min(WARM_UP, len(seconds) - 1) :])


def _time_verify(model: SpeculativeModel, cache: PromptCache, size: int) -> float:
    tree = DraftTree.from_parents([0] * size, [node - 1 for node in range(size)])
    mx.eval(tree.tokens, tree.depths, tree.ancestors)

    def forward() -> mx.array:
        logits, _ = model.target.verify(tree, cache)
        return mx.argmax(logits, axis=-1)

    return _median_seconds(forward)


def _time_replay(model: SpeculativeModel, cache: PromptCache) -> float:
    """Seconds by which a step is longer behind a rejected tail than behind a chain that stayed.

    The two take turns, as the machine drifts.
    """
    held, (rows, kept) = len(cache), REPLAYED
    tree = DraftTree.from_parents([0] * rows, range(-1, rows - 1))
    differences = []
    for _ in range(WARM_UP + REPEATS):
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


def _time_draft(model: SpeculativeModel, drafter: Drafter, width: int) -> tuple[float, float]:
    """Seconds of a draft before its first level, and of each level."""
    short, long = (_time_search(model, drafter, BeamShape(width, n)) for n in DRAFT_LENGTHS)
    first, last = DRAFT_LENGTHS
    # Another program's time in one of the two must not make levels free, or drafts.
    level = min(max((long - short) / (last - first), 0.5 * long / last), long / last)
    return long - last * level, level


def _time_search(model: SpeculativeModel, drafter: Drafter, shape: BeamShape) -> float:
    model.target.take_cores(1 + shape.nodes)  # as in a step that drafts
    embed, sampling = model.target.embed, SamplingConfig()
    search = BeamSearch(drafter, embed, shape, sampling, compiled=on_gpu())
    state = DraftState(
        root=mx.zeros((1,), dtype=mx.int32),
        hidden=mx.zeros((model.target.hidden_size,), dtype=model.target.dtype),
        noise=None,
    )
    return _median_seconds(lambda: search(state).log_probs)
