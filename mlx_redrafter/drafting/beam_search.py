"""Beam search with the recurrent drafter, kept whole as a draft tree.

The paper (arXiv 2403.09919, section 3.2) follows ``width`` beams for ``length`` tokens and verifies
the final beams. Here every node the search opened is a candidate: width x length nodes, of which
the likeliest ``node_budget`` are verified. A child never scores above its parent, so these always
form a tree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from ..logits import largest
from ..sampling import SamplingConfig, scores
from ..tree import DraftTree
from .log_sum_exp import log_sum_exp
from .memory_drafter import MemoryView, together
from .prepared_drafter import DraftStart, PreparedDrafter
from .shape import BeamShape
from .source import DraftInput, DraftSource, last_tokens

# A token's score is at least this, so that sums stay finite where a filter removed the token ...
FLOOR = -100.0
# ... and at most this, so that a child always stands after its parent.
CEILING = -1e-3
TIMED_CALLS = 3


class BeamSearch:
    """The drafter's beam search for one shape, as a DraftSource.

    Args:
        prepared: The draft head.
        embed: The target's input embedding, int (...) to (..., hidden_size).
        shape: How far and how wide.
        sampling: Temperature and filters of the target's choices; with them, and the noise, the
            search guesses the token that the target is about to draw.
        compiled: Whether to fuse the search's small operations, see ``device.fuses_drafts``.

    Attributes:
        shape: As given.
        seconds: What a draft takes on its own; 0 before :meth:`time`.
        lookback: See DraftSource.
    """

    def __init__(
        self,
        prepared: PreparedDrafter,
        embed: Callable[[mx.array], mx.array],
        shape: BeamShape,
        sampling: SamplingConfig,
        *,
        compiled: bool = False,
    ):
        config = prepared.drafter.config
        if shape.width > config.head_size:
            raise RedrafterError(
                f"beam width is {shape.width}, but the drafter knows only "
                f"{config.head_size} tokens: choose a smaller width."
            )
        self.shape = shape
        self.seconds = 0.0
        self._prepared = prepared
        self.lookback: int | None = config.lookback
        search = partial(_search, prepared, embed, shape, sampling)
        self._search = mx.compile(search) if compiled else search

    @property
    def max_depth(self) -> int:
        """The beam length."""
        return self.shape.length

    def time(self, state: DraftInput) -> None:
        """Measure what a draft takes on its own: the median of a few, the first not counted."""
        seconds = []
        for _ in range(TIMED_CALLS + 1):
            start = time.perf_counter()
            mx.eval(self(state).log_probs)
            seconds.append(time.perf_counter() - start)
        self.seconds = sorted(seconds[1:])[TIMED_CALLS // 2]

    def __call__(self, state: DraftInput) -> DraftTree:
        """Search from ``state.root``; the likeliest final beam is laid out right after it."""
        return self.together([state])[0]

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        """Search from several roots at once: one tree for each, all with as many nodes."""
        noises = [state.noise for state in states if state.noise is not None]
        arrays = self._search(
            mx.stack([state.hidden for state in states]),
            mx.stack([state.root for state in states]),
            mx.stack(noises) if noises else None,
            mx.stack([self._before(state) for state in states]) if self.lookback else None,
            self._memory(states) if self._prepared.memory_head else None,
        )
        rows = [_rows(array) for array in arrays]
        return [
            DraftTree(
                tokens=tokens, parents=parents, depths=depths, log_probs=log_probs,
                ancestors=ancestors, max_depth=self.shape.length, max_leaves=self.shape.leaves,
            )
            for tokens, parents, depths, log_probs, ancestors in zip(*rows, strict=True)
        ]  # fmt: skip

    def begin(self, prompt: Sequence[int]) -> DraftSource:  # noqa: ARG002
        """Itself: what it needs of a text it is told each time."""
        return self

    def accepted(self, tokens: Sequence[int]) -> None:
        """Nothing is remembered."""

    def _before(self, state: DraftInput) -> mx.array:
        if state.before is not None:
            return state.before
        return mx.array(last_tokens(state.text, self.lookback or 0), dtype=mx.int32)

    def _memory(self, states: Sequence[DraftInput]) -> MemoryView:
        found = [state.memory for state in states if state.memory is not None]
        if len(found) < len(states):
            raise RedrafterError("This drafter needs a memory of the text: draft with decode().")
        return found[0] if len(found) == 1 else together(found)


def _rows(array: mx.array) -> list[mx.array]:
    """The entries along the first axis; of a single one a view."""
    return [array.squeeze(0)] if array.shape[0] == 1 else list(array)


def _pick(rows: mx.array, index: mx.array) -> mx.array:
    """Of (batch, m, ...) the entries that ``index`` (batch, k) names: (batch, k, ...)."""
    index = index.reshape(*index.shape, *[1] * (rows.ndim - 2))
    return mx.take_along_axis(rows, index, axis=1)


def _search(
    prepared: PreparedDrafter,
    embed: Callable[[mx.array], mx.array],
    shape: BeamShape,
    sampling: SamplingConfig,
    hidden: mx.array,
    root: mx.array,
    noise: mx.array | None,
    before: mx.array | None,
    memory: MemoryView | None,
) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
    """The searches from the roots (batch, 1), with hidden (batch, state_size) and noise.

    ``before`` are the tokens before the root, (batch, lookback), -1 where there is none.
    Nodes are first numbered as they are opened: the root 0, beam b of depth d
    1 + (d - 1) * width + b.

    Returns:
        Tokens, parents, depths, log-probabilities (batch, n) and ancestors (batch, n, n);
        n = 1 + shape.nodes.
    """
    drafter = prepared.drafter
    if noise is not None:
        noise = drafter.draft_columns(noise)
    draft, state = prepared.begin(DraftStart(embed, hidden, before, memory, shape.length))
    if shape.width == 1:
        return _chain(prepared, embed, shape.nodes, sampling, draft, root, noise, state)
    width, opened = shape.width, 1 + shape.width * shape.length
    batch = root.shape[0]
    itself = mx.eye(opened, dtype=mx.bool_)
    tokens, totals = [root], [mx.zeros((batch, 1))]
    lineage = [mx.broadcast_to(itself[:1], (batch, 1, opened))]
    for depth in range(shape.length):
        state = prepared.advance(draft, embed(tokens[-1]), state, depth)
        level_noise = None if noise is None else noise[:, depth : depth + 1]
        level_scores = _level_scores(prepared, sampling, draft, state, level_noise)
        head_size = level_scores.shape[-1]
        beams = totals[-1][..., None] - log_sum_exp(level_scores)
        candidates = (level_scores + beams).reshape(batch, -1)
        best = largest(candidates, width)
        beam = best // head_size
        tokens.append(drafter.target_tokens(best % head_size))
        parents = _pick(totals[-1], beam)
        totals.append(parents + _bounded(_pick(candidates, best) - parents))
        first = 1 + depth * width
        lineage.append(_pick(lineage[-1], beam) | itself[first : first + width])
        state = _pick(state, beam)
    depths = mx.array([0] + [1 + node // width for node in range(opened - 1)], dtype=mx.int32)
    return _select(
        shape, mx.concatenate(tokens, axis=1), mx.concatenate(totals, axis=1), depths,
        mx.concatenate(lineage, axis=1),
    )  # fmt: skip


def _chain(
    prepared: PreparedDrafter,
    embed: Callable[[mx.array], mx.array],
    length: int,
    sampling: SamplingConfig,
    draft: Any,
    root: mx.array,
    noise: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
    """:func:`_search` for a single beam: nothing is sorted, and scores wait to the end."""
    drafter = prepared.drafter
    batch, n = root.shape[0], 1 + length
    tokens, levels = [root], []
    for depth in range(length):
        state = prepared.advance(draft, embed(tokens[-1]), state, depth)
        level_noise = None if noise is None else noise[:, depth : depth + 1]
        level_scores = _level_scores(prepared, sampling, draft, state, level_noise)[:, 0]
        tokens.append(drafter.target_tokens(mx.argmax(level_scores, axis=-1, keepdims=True)))
        levels.append(level_scores)
    level_scores = mx.stack(levels, axis=1)
    likeliest = mx.max(level_scores, axis=-1, keepdims=True)
    gains = _bounded(likeliest - log_sum_exp(level_scores)).squeeze(-1)
    depths = mx.broadcast_to(mx.arange(n, dtype=mx.int32), (batch, n))
    return (
        mx.concatenate(tokens, axis=1).astype(mx.int32),
        depths - 1,
        depths,
        mx.concatenate([mx.zeros((batch, 1)), mx.cumsum(gains, axis=1)], axis=1),
        mx.broadcast_to(mx.tri(n, dtype=mx.bool_), (batch, n, n)),
    )


def _level_scores(
    prepared: PreparedDrafter,
    sampling: SamplingConfig,
    draft: Any,
    state: mx.array,
    noise: mx.array | None,
) -> mx.array:
    """Each next token's score but for a constant, float32 (..., head_size)."""
    logits = prepared.logits(draft, state).astype(mx.float32)
    return scores(sampling, logits, noise, normalise=False)


def _bounded(gains: mx.array) -> mx.array:
    """What tokens add to a beam's score, within bounds; negative."""
    return mx.clip(gains, FLOOR, CEILING)


def _select(
    shape: BeamShape,
    tokens: mx.array,
    totals: mx.array,
    depths: mx.array,
    lineage: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
    """The root and the best nodes; of these the best final beam first, then by score."""
    count, width = 1 + shape.nodes, shape.width
    leader = _pick(lineage[:, -width:], mx.argmax(totals[:, -width:], axis=-1, keepdims=True))[:, 0]
    rank = mx.where(leader, 1e6 - depths, totals)
    # The root scores 0 and every child less than its parent, so the best are always a tree.
    if shape.max_leaves is not None:
        order = mx.argsort(-rank, axis=-1)[:, :count]
    else:
        kept = mx.argsort(-totals, axis=-1)[:, :count]
        order = _pick(kept, mx.argsort(-_pick(rank, kept), axis=-1))
    ancestors = mx.take_along_axis(_pick(lineage, order), order[:, None, :], axis=2)
    depths = mx.take(depths, order)
    # A parent is the one ancestor that is a level up; no node of depth 0 has any.
    parent = ancestors & (depths[:, None, :] == depths[..., None] - 1)
    parents = mx.where(depths == 0, -1, mx.argmax(parent, axis=-1).astype(mx.int32))
    return (
        _pick(tokens, order).astype(mx.int32),
        parents,
        depths,
        _pick(totals, order),
        ancestors,
    )
