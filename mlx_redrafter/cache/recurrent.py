"""Chains: how drafts are verified where layers carry recurrent state, or rows must simply follow
one another.

A recurrent layer's state after n rows says nothing about the state after fewer, so a draft is
reduced to one chain and the state is noted before it is verified. If all of it is accepted, the new
state stays. If not, the noted state comes back, and the modules that changed it are run again over
the accepted rows, with the inputs that they had: nothing but what the state depends on is computed
(no attention, no feed-forward, no logits), as part of the next step's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from .forward_context import ForwardContext
from .prompt_cache import LayerCache

# The ends of so many prompts stay reachable.
KEPT_PROMPTS = 2

Attributes = dict[str, Any]


@dataclass
class _Step:
    """One forward: the state before it, and what it ran.

    Attributes:
        start: Committed tokens before it.
        end: Committed tokens after it; ``start`` while nothing of it is committed.
        snapshot: The state at ``start``.
        calls: ``call(k)`` runs what changed the state over the first k rows only.
    """

    start: int
    end: int
    snapshot: Attributes
    calls: list[Callable[[int], None]] = field(default_factory=list)


class RecurrentCache(LayerCache):
    """A cache of mlx-lm's whose arrays are replaced, never written into: recurrent state.

    Args:
        raw: An empty cache, for instance an ArraysCache.
        context: The target's.

    Attributes:
        offset: Number of committed tokens.
        rows: Rows of the forward under way; 0 if none is.
    """

    def __init__(self, raw: Any, context: ForwardContext):
        self.offset = self.rows = 0
        self._raw = raw
        self._context = context
        self._empty = self._snapshot()
        self._steps: list[_Step] = []
        self._prompts: list[tuple[int, Attributes]] = []

    @property
    def mlx_cache(self) -> Any:
        """mlx-lm's cache."""
        return self._raw

    def watch(self, watched: dict[int, Any]) -> None:
        """Ask to be told of the calls that get this cache."""
        watched[id(self._raw)] = self

    def begin(self, rows: int) -> None:
        """Note the state. The step before stays known: its last tokens may still be taken back."""
        self._forget()
        self.rows = rows
        self._steps = [*self._steps[-1:], _Step(self.offset, self.offset, self._snapshot())]

    def record(self, call: Callable[[int], None]) -> None:
        """Take note of a call that changes the state; ``call(k)`` runs it over k rows only."""
        self._steps[-1].calls.append(call)

    def commit_all(self, rows: int) -> None:
        """The state now is that after a prompt's rows; it stays reachable."""
        start = self.offset
        self._advance(rows)
        earlier = [entry for entry in self._prompts if entry[0] != start]
        self._prompts = [*earlier, (self.offset, self._snapshot())][-KEPT_PROMPTS:]

    def commit(self, path: Sequence[int]) -> None:
        """Keep the first ``len(path)`` rows of the chain."""
        if len(path) < self.rows:
            self._replay(self._steps[-1], len(path))
        self._advance(len(path))

    def _advance(self, rows: int) -> None:
        self.offset += rows
        self.rows = 0
        if self._steps:
            self._steps[-1].end = self.offset

    def _replay(self, step: _Step, rows: int) -> None:
        """The state after the first rows of a step."""
        self._restore(step.snapshot)
        with self._context.replay():
            for call in step.calls if rows else []:
                call(rows)

    def _forget(self) -> None:
        """Drop rows that were never committed."""
        if self.rows:
            self._restore(self._steps.pop().snapshot)
            self.rows = 0

    def can_rewind(self, length: int) -> bool:
        """Whether ``length`` is where it stands, a noted point, or inside one of two steps."""
        return length == self.offset or self._find(length) is not None

    def _find(self, length: int) -> _Step | None:
        """The step to go back into."""
        for step in reversed(self._steps):
            if step.start == length or (step.calls and step.start < length < step.end):
                return step
        return next((_Step(p, p, snapshot) for p, snapshot in self._prompts if p == length), None)

    def replay_start(self, length: int) -> int:
        """Where ``rewind(length)`` begins to run modules again; ``length`` if it need not."""
        step = self._find(length) if length != self.offset else None
        return step.start if step is not None else length

    def rewind_points(self) -> list[int]:
        """The noted points."""
        return [step.start for step in self._steps] + [point for point, _ in self._prompts]

    def rewind(self, length: int) -> None:
        """Bring back the state after ``length`` tokens."""
        self._forget()
        if length != self.offset:
            step = self._find(length)
            assert step is not None
            self._replay(step, length - step.start)
            step.end = self.offset = length
        self._steps = [step for step in self._steps if step.start <= length]
        self._prompts = [entry for entry in self._prompts if entry[0] <= length]

    def reset(self) -> None:
        """Forget everything."""
        self._restore(self._empty)
        self.offset = self.rows = 0
        self._steps, self._prompts = [], []

    @property
    def state(self) -> Any:
        """The arrays to evaluate."""
        return self._raw.state

    def _snapshot(self) -> Attributes:
        return _copied(vars(self._raw))

    def _restore(self, snapshot: Attributes) -> None:
        vars(self._raw).update(_copied(snapshot))


def _copied(attributes: Attributes) -> Attributes:
    """The same arrays in containers of their own."""
    return {key: list(v) if isinstance(v, list) else v for key, v in attributes.items()}


def recording_call(context: ForwardContext, base: Any) -> Any:
    """A module's call that tells a watched cache among its arguments how to repeat it.

    Only the outermost of nested calls is told: what it runs again contains the others.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        watched = context.watched
        layer = next(
            (watched[id(a)] for a in (*args, *kwargs.values()) if id(a) in watched), None
        ) if watched else None  # fmt: skip
        if layer is None:
            return base(self, *args, **kwargs)
        rows = layer.rows

        def again(kept: int) -> None:
            shorter = tree_map(lambda value: first_rows(value, rows, kept), [list(args), kwargs])
            base(self, *shorter[0], **shorter[1])

        layer.record(again)
        context.watched = {key: other for key, other in watched.items() if other is not layer}
        try:
            return base(self, *args, **kwargs)
        finally:
            context.watched = watched

    return call


def first_rows(value: Any, rows: int, kept: int) -> Any:
    """Of an array with ``rows`` rows the first ``kept``: (1, rows, ...) or a mask (rows, keys)."""
    if not isinstance(value, mx.array) or value.ndim < 2:
        return value
    if value.shape[0] == 1 and value.shape[1] == rows:
        return value[:, :kept]
    if value.dtype == mx.bool_ and value.shape[-2] == rows:
        return value[..., :kept, : value.shape[-1] - (rows - kept)]
    return value
