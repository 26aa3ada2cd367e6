"""Recurrent state under verification: one sequence's, which can go back, and a batch's.

A recurrent layer's state after a tree's rows says nothing about the state after an accepted path,
so the state is kept before a draft is verified. Where the rows were one chain and all of it is
accepted, the new state stays; where the accepted path is one of the tree's paths from end to end,
the state of that path does. Otherwise the state before comes back, and the modules that change it
run again over the accepted rows, with the inputs that they had and the matrix products that they
made: nothing but the recurrence itself is computed, as part of the next step's graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .forward_context import ForwardContext
from .kept_points import KeptPoints
from .layer_cache import LayerCache
from .module_call import ModuleCall
from .tree_paths import PathPositions, TreePaths

# The state of every path is held until one is accepted, up to so many bytes a layer; beyond, the
# accepted rows are computed again.
HELD_BYTES = 4 << 20

Attributes = dict[str, Any]


class RecurrentState:
    """A cache of mlx-lm's whose arrays are replaced, never written into.

    Args:
        raw: A cache, for instance an ArraysCache.

    Attributes:
        batch: Number of texts.
        num_nodes: Rows of the forward under way for each text; 0 if none is.
        paths: How the state was spread in that forward; None if it was not.
    """

    def __init__(self, raw: Any):
        self._raw = raw
        self.batch = 1
        self.num_nodes = 0
        self.paths: TreePaths | None = None
        self._released = False

    @property
    def mlx_cache(self) -> Any:
        """mlx-lm's cache."""
        return self._raw

    def snapshot(self) -> Attributes:
        """The arrays, in containers of their own."""
        return _mapped(vars(self._raw), lambda array: array)

    def restore(self, snapshot: Attributes) -> None:
        """Bring arrays back."""
        vars(self._raw).update(_mapped(snapshot, lambda array: array))

    def spread(self, paths: TreePaths) -> None:
        """Give every path of a tree the state; modules may share it, so it is done once."""
        if self.paths is None:
            self.paths = paths
            self.restore(_mapped(vars(self._raw), paths.spread))

    def release(self, before: Attributes) -> None:
        """Forget the state of each path where they are large; only a replay brings one back."""
        if self.paths is not None and nbytes_of(vars(self._raw)) > HELD_BYTES:
            self.restore(before)
            self.paths, self._released = None, True

    def _settle(self) -> None:
        """No forward is under way."""
        self.num_nodes, self.paths, self._released = 0, None, False

    @property
    def state(self) -> Any:
        """The arrays to evaluate."""
        return self._raw.state


@dataclass
class _Step:
    """One forward: the state before it, and what it ran.

    Attributes:
        start: Committed tokens before it.
        end: Committed tokens after it; ``start`` while nothing of it is committed.
        snapshot: The state at ``start``.
        calls: What changed the state; None is a call that another cache runs again for all.
        path: The nodes that were committed.
    """

    start: int
    end: int
    snapshot: Attributes
    calls: list[ModuleCall | None] = field(default_factory=list)
    path: tuple[int, ...] = ()


class RecurrentCache(RecurrentState, LayerCache):
    """One sequence's recurrent state.

    Args:
        raw: An empty cache, for instance an ArraysCache.
        context: The target's.

    Attributes:
        offset: Number of committed tokens.
    """

    replays = True

    def __init__(self, raw: Any, context: ForwardContext):
        super().__init__(raw)
        self.offset = 0
        self._context = context
        self._empty = self.snapshot()
        self._steps: list[_Step] = []
        self._points: KeptPoints[Attributes] = KeptPoints()

    def watch(self, watched: dict[int, Any]) -> None:
        """Ask to hear of the calls that get this cache."""
        watched[id(self._raw)] = self

    def begin(self, rows: int) -> None:
        """Keep the state. The step before stays known: its last tokens may still be taken back."""
        self._forget()
        self.num_nodes = rows
        self._steps = [*self._steps[-1:], _Step(self.offset, self.offset, self.snapshot())]

    def record(self, call: ModuleCall | None) -> None:
        """Take note of a call that has changed the state."""
        self._steps[-1].calls.append(call)
        self.release(self._steps[-1].snapshot)

    def commit_all(self, rows: int) -> None:
        """The state now is that after a piece of a prompt; it stays reachable."""
        start = self.offset
        self._advance(rows)
        self._points.add(start, self.offset, self.snapshot())

    def commit(self, path: Sequence[int]) -> None:
        """Keep the nodes ``path``, the root first."""
        if self._steps:
            self._steps[-1].path = tuple(path)
        if self.paths is not None and len(path) == self.paths.levels:
            # No path of the tree is longer, so the accepted one is its path from end to end.
            row = self.paths.path_of(path[-1])
            self.restore(_mapped(vars(self._raw), lambda array: mx.take(array, row, axis=0)))
        elif self.paths is not None or self._released or not _is_whole(path, self.num_nodes):
            self._replay(self._steps[-1], len(path))
        self._advance(len(path))

    def _advance(self, rows: int) -> None:
        self.offset += rows
        self._settle()
        if self._steps:
            self._steps[-1].end = self.offset

    def _replay(self, step: _Step, rows: int) -> None:
        """The state after the first rows of a step's path."""
        self.restore(step.snapshot)
        for call in step.calls if rows else []:
            if call is not None:
                call.replay(self._context, [step.path[:rows]])

    def _forget(self) -> None:
        """Drop rows that were never committed."""
        if self.num_nodes:
            self.restore(self._steps.pop().snapshot)
            self._settle()

    def can_rewind(self, length: int) -> bool:
        """Whether ``length`` is where it stands, a noted point, or inside one of two steps."""
        return length == self.offset or self._find(length) is not None

    def _find(self, length: int) -> _Step | None:
        """The step to go back into."""
        for step in reversed(self._steps):
            if step.start == length or (step.calls and step.start < length < step.end):
                return step
        snapshot = self._points.find(length)
        return None if snapshot is None else _Step(length, length, snapshot)

    def replay_start(self, length: int) -> int:
        """Where ``rewind(length)`` begins to run modules again; ``length`` if it need not."""
        step = self._find(length) if length != self.offset else None
        return step.start if step is not None else length

    def rewind_points(self) -> list[int]:
        """The noted points."""
        return [step.start for step in self._steps] + self._points.positions

    def rewind(self, length: int) -> None:
        """Bring back the state after ``length`` tokens."""
        self._forget()
        if length != self.offset:
            step = self._find(length)
            assert step is not None
            self._replay(step, length - step.start)
            step.end = self.offset = length
        self._steps = [step for step in self._steps if step.start <= length]
        self._points.forget_after(length)

    def copy(self) -> RecurrentCache:
        """See :class:`LayerCache`; of steps only their starts stay reachable."""
        raw = copy.copy(self._raw)
        vars(raw).update(_mapped(self._empty, lambda array: array))
        made = RecurrentCache(raw, self._context)
        pending = self._steps[-1].snapshot if self.num_nodes else self.snapshot()
        made.adopt(pending, self.offset)
        made._points = self._points.copy()
        for step in self._steps:
            if step.start < self.offset and self._points.find(step.start) is None:
                made._points.add(step.start, step.start, step.snapshot)
        return made

    def content(self) -> dict[str, Any]:
        """See :class:`LayerCache`."""
        kept = self.copy()
        points = kept._points.to_data(dict)
        return {"offset": kept.offset, "state": kept.snapshot(), "points": points}

    def take_over(self, content: dict[str, Any]) -> None:
        """See :class:`LayerCache`."""
        self.adopt(self._fitting(content["state"]), content["offset"])
        self._points.take_over(content["points"], self._fitting)

    def _fitting(self, state: Attributes) -> Attributes:
        if state.keys() != self._empty.keys():
            raise ValueError("the state is another kind's")
        return state

    def adopt(self, state: Attributes, length: int) -> None:
        """Take over the state after ``length`` tokens, from an empty cache."""
        self.restore(state)
        self.offset = length

    def reset(self) -> None:
        """Forget everything."""
        self.restore(self._empty)
        self.offset = 0
        self._settle()
        self._steps, self._points = [], KeptPoints()

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes, with that at the points that are kept."""
        return nbytes_of(vars(self._raw), *self._points.contents)


class BatchRecurrentCache(RecurrentState):
    """The recurrent state of several texts, (batch, ...) each array.

    Args:
        raw: An empty cache, for instance an ArraysCache.
        context: The target's.
    """

    def __init__(self, raw: Any, context: ForwardContext):
        super().__init__(raw)
        self._context = context
        self._before: Attributes = self.snapshot()
        self._calls: list[ModuleCall | None] = []

    def watch(self, watched: dict[int, Any]) -> None:
        """Ask to hear of the calls that get this cache."""
        watched[id(self._raw)] = self

    def begin(self, rows: int) -> None:
        """Keep the state; rows that were not committed are forgotten."""
        if self.num_nodes:
            self.restore(self._before)
        self._settle()
        self.num_nodes, self._calls = rows, []
        self._before = self.snapshot()

    def record(self, call: ModuleCall | None) -> None:
        """Take note of a call that has changed the state."""
        self._calls.append(call)
        self.release(self._before)

    def commit(self, paths: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Keep a path of each text.

        Args:
            paths: Nodes of each path, the root first.
            starts: Committed tokens before each.
        """
        spread = self.paths is not None or self._released
        if spread or not all(_is_whole(path, self.num_nodes) for path in paths):
            self._replay(paths, starts)
        self._settle()
        self._calls = []

    def _replay(self, paths: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Run modules again, together for texts that accepted equally many rows."""
        order: list[int] = []
        states: list[Attributes] = []
        longest = max(starts)
        for length in sorted({len(path) for path in paths}):
            texts = [place for place, path in enumerate(paths) if len(path) == length]
            self.restore(_mapped(self._before, _taking(texts)))
            placing = PathPositions(mx.array([starts[t] for t in texts]), longest, length)
            for call in self._calls:
                if call is not None:
                    call.replay(self._context, [paths[t] for t in texts], texts, placing)
            order += texts
            states.append(self.snapshot())
        back = _taking([order.index(text) for text in range(len(paths))])
        self.restore(_mapped(_joined(states), back))

    def extract(self, place: int) -> Attributes:
        """The state of one text, (1, ...) each array; without a step that is under way."""
        return _mapped(self._committed, _taking([place]))

    @property
    def _committed(self) -> Attributes:
        """The state without a step that is under way."""
        return self._before if self.num_nodes else vars(self._raw)

    def compose(self, kept: Sequence[int], joined: Sequence[RecurrentCache]) -> None:
        """Keep the texts ``kept``, in that order, and put others after them.

        A step that is under way is forgotten: those that it was made for have left.
        """
        parts = [_mapped(self._committed, _taking(kept))] if kept else []
        self.restore(_joined([*parts, *(one.snapshot() for one in joined)]))
        self._settle()
        self._calls = []
        self.batch = len(kept) + len(joined)


def _is_whole(path: Sequence[int], nodes: int) -> bool:
    """Whether a path is all of a chain."""
    return list(path) == list(range(nodes))


def _mapped(attributes: Attributes, change: Callable[[mx.array], mx.array]) -> Attributes:
    """Attributes with their arrays changed, in containers of their own."""

    def mapped(value: Any) -> Any:
        if isinstance(value, list):
            return [mapped(entry) for entry in value]
        return change(value) if isinstance(value, mx.array) else value

    return {key: mapped(value) for key, value in attributes.items()}


def _taking(places: Sequence[int]) -> Callable[[mx.array], mx.array]:
    index = mx.array(list(places), dtype=mx.int32)
    return lambda array: mx.take(array, index, axis=0)


def _joined(parts: Sequence[Attributes]) -> Attributes:
    """The states of several groups of texts, one after the other."""
    if len(parts) < 2:
        return parts[0] if parts else {}

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [joined(entry) for entry in zip(*values, strict=True)]
        return _stacked(values) if isinstance(values[0], mx.array) else values[0]

    return {key: joined([part[key] for part in parts]) for key in parts[0]}


def _stacked(arrays: Sequence[mx.array]) -> mx.array:
    """States of several texts; histories that are still short begin with zeros (n-grams)."""
    longest = max(array.shape[1] for array in arrays)
    short = [(longest - array.shape[1], array) for array in arrays]
    rest = [[(0, 0)] * (array.ndim - 2) for array in arrays]
    return mx.concatenate(
        [
            mx.pad(array, [(0, 0), (missing, 0), *widths]) if missing else array
            for (missing, array), widths in zip(short, rest, strict=True)
        ]
    )


def nbytes_of(*held: Attributes) -> int:
    """Bytes of the arrays, of each once."""
    sizes: dict[int, int] = {}

    def count(array: mx.array) -> mx.array:
        sizes[id(array)] = int(array.nbytes)
        return array

    for attributes in held:
        _mapped(attributes, count)
    return sum(sizes.values())
