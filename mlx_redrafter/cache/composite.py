"""Layers with several caches, and caches of which nothing is assumed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.models.cache import CacheList

from .cache_file import refuse_unsavable
from .layer_cache import LayerCache


class CacheGroup(LayerCache):
    """A layer with several caches, mlx-lm's CacheList."""

    def __init__(self, parts: Sequence[LayerCache]):
        self._parts = list(parts)
        self._mlx_cache = CacheList(*(part.mlx_cache for part in parts))

    @property
    def parts(self) -> list[LayerCache]:
        """The caches, in order."""
        return self._parts

    @property
    def leaves(self) -> list[LayerCache]:
        return [leaf for part in self._parts for leaf in part.leaves]

    @property
    def offset(self) -> int:  # type: ignore[override]
        """Number of committed tokens; a part that the model never uses has none."""
        return max(part.offset for part in self._parts)

    @property
    def mlx_cache(self) -> Any:
        """mlx-lm's CacheList of the parts."""
        return self._mlx_cache

    def watch(self, watched: dict[int, Any]) -> None:
        """A module may be given a part, or the list."""
        for part in self._parts:
            part.watch(watched)
        states = [part for part in self._parts if part.replays]
        if states:
            watched[id(self._mlx_cache)] = states[0]

    def begin(self, rows: int) -> None:
        for part in self._parts:
            part.begin(rows)

    def commit_all(self, rows: int) -> None:
        for part in self._parts:
            part.commit_all(rows)

    def commit(self, path: Sequence[int]) -> None:
        """Tell the parts, recurrent ones first: a replay wants the others as they were."""
        for part in sorted(self._parts, key=lambda part: not part.replays):
            part.commit(path)

    def can_rewind(self, length: int) -> bool:
        """Whether all parts can."""
        return all(part.can_rewind(length) for part in self._parts)

    def rewind_points(self) -> list[int]:
        """All parts' points."""
        return [point for part in self._parts for point in part.rewind_points()]

    def rewind(self, length: int) -> None:
        """Tell the parts; where recurrent state is replayed, the others stand at the step's start.

        Their rows after ``offset`` stay where they are, so they can go forward again.
        """
        states = [part for part in self._parts if part.replays]
        others = [part for part in self._parts if not part.replays]
        for part in states:
            start = part.replay_start(length)
            for other in others:
                other.rewind(start)
            part.rewind(length)
        for other in others:
            other.rewind(length)

    def copy(self) -> CacheGroup:
        return CacheGroup([part.copy() for part in self._parts])

    def content(self) -> dict[str, Any]:
        return {"parts": [part.content() for part in self._parts]}

    def take_over(self, content: dict[str, Any]) -> None:
        for part, saved in zip(self._parts, content["parts"], strict=True):
            part.take_over(saved)

    def reset(self) -> None:
        for part in self._parts:
            part.reset()

    @property
    def state(self) -> Any:
        """The parts' arrays."""
        return [part.state for part in self._parts]

    @property
    def nbytes(self) -> int:
        """Size of the parts' buffers in bytes, with what they keep beside."""
        return sum(part.nbytes for part in self._parts)


class OpaqueCache(LayerCache):
    """A cache of mlx-lm's of which nothing is assumed: good for plain decoding only.

    Args:
        make: Makes it, empty.
    """

    def __init__(self, make: Callable[[], Any]):
        self.offset = 0
        self._make = make
        self._raw = make()
        self._rows = 0

    @property
    def mlx_cache(self) -> Any:
        """mlx-lm's cache."""
        return self._raw

    @property
    def can_discard(self) -> bool:
        """A row too many may not come out again."""
        return False

    def begin(self, rows: int) -> None:
        """Count the rows."""
        self._rows += rows

    def commit_all(self, rows: int) -> None:
        """Count the rows as committed."""
        self._advance(rows)

    def commit(self, path: Sequence[int]) -> None:
        """Count the rows as committed; there can be no others."""
        self._advance(len(path))

    def _advance(self, rows: int) -> None:
        self.offset += rows
        self._rows -= rows

    def can_rewind(self, length: int) -> bool:
        """Whether nothing is to be forgotten, or mlx-lm's cache can do it."""
        surplus = self._held - length
        return surplus == 0 or (surplus > 0 and bool(self._raw.is_trimmable()))

    @property
    def _held(self) -> int:
        """Rows that mlx-lm's cache has, by its own word: a forward that was begun may have been
        broken off before it came to this layer."""
        held = getattr(self._raw, "offset", None)
        return held if isinstance(held, int) else self.offset + self._rows

    def rewind(self, length: int) -> None:
        """Trim mlx-lm's cache."""
        surplus = self._held - length
        if surplus:
            self._raw.trim(surplus)
        self.offset, self._rows = length, 0

    def copy(self) -> OpaqueCache:
        """See :class:`LayerCache`; mlx-lm's caches are copied as its own server copies them."""
        made = copy.copy(self)
        made._raw = copy.deepcopy(self._raw)
        return made

    def content(self) -> dict[str, Any]:
        """Refuse: what of it belongs to which row is not known."""
        kind = type(self._raw).__name__
        refuse_unsavable(f"a {kind} of mlx-lm's, of whose rows nothing is known")

    def take_over(self, content: dict[str, Any]) -> None:  # noqa: ARG002
        """There is no such content."""
        raise ValueError(f"a {type(self._raw).__name__} takes nothing over")

    def reset(self) -> None:
        """Make a new one."""
        self._raw = self._make()
        self.offset = self._rows = 0

    @property
    def state(self) -> Any:
        """The arrays to evaluate."""
        return self._raw.state
