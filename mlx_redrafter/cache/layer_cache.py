"""What every layer's cache can do, whatever it keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten


class LayerCache(ABC):
    """One entry of a model's cache list, seen from outside the model.

    A forward is announced by ``begin``; its rows are then either committed (``commit_all``, or
    ``commit`` after a verification) or forgotten by the next ``begin`` or ``rewind``.

    Attributes:
        offset: Number of committed tokens.
        replays: Whether it goes back by running tokens again, as recurrent state does.
    """

    offset: int
    replays = False

    @property
    def leaves(self) -> list[LayerCache]:
        """The caches that are no groups: this one, or all in a group."""
        return [self]

    @property
    @abstractmethod
    def mlx_cache(self) -> Any:
        """The object that the model is given as this layer's cache."""

    def begin(self, rows: int) -> None:  # noqa: B027 - most layers need not know
        """A forward over ``rows`` rows follows; rows not committed by now are forgotten."""

    def commit_all(self, rows: int) -> None:  # noqa: B027
        """The forward that was begun is committed as a whole: a piece of a prompt."""

    @abstractmethod
    def commit(self, path: Sequence[int]) -> None:
        """Keep the verified rows ``path`` (indices into the tree, root first), forget the rest."""

    def blank(self, rows: int) -> None:  # noqa: B027
        """Put zeros in place of the rows of a forward that is not committed.

        What is no number counts even where a mask gives it no weight, and a later forward may be
        given rows beyond its own.
        """

    @abstractmethod
    def can_rewind(self, length: int) -> bool:
        """Whether it is known how this layer stood after ``length`` tokens."""

    def rewind_points(self) -> list[int]:
        """Lengths below ``offset`` that ``rewind`` reaches, where it does not reach all."""
        return []

    def replay_start(self, length: int) -> int:
        """Where the other caches of its layer have to stand when it goes back to ``length``."""
        return length

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Forget all rows at and after position ``length``, uncommitted ones included."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything and free the buffers."""

    @abstractmethod
    def copy(self) -> LayerCache:
        """The committed rows in a cache of their own; buffers are shared until one is written."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What :meth:`copy` keeps, as nested dicts and lists of arrays, numbers, text and None.

        Raises:
            RedrafterError: If nothing is known that could be written to a file.
        """

    @abstractmethod
    def take_over(self, content: dict[str, Any]) -> None:
        """Go on from the :meth:`content` of a layer of this kind; from an empty cache.

        Raises:
            KeyError, TypeError or ValueError: If it is no such content.
        """

    @property
    @abstractmethod
    def state(self) -> Any:
        """The arrays to evaluate."""

    @property
    def can_discard(self) -> bool:
        """Whether a row that is never committed can be forgotten without forgetting more."""
        return True

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        leaves = [value for _, value in tree_flatten(self.state)]
        return sum(int(leaf.nbytes) for leaf in leaves if isinstance(leaf, mx.array))

    def watch(self, watched: dict[int, Any]) -> None:  # noqa: B027
        """Add the caches whose changes this layer has to hear of, by ``id``."""

    def unquantized(self) -> LayerCache:
        """What stands in this place when everything was forgotten."""
        return self
