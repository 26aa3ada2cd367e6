"""Key/value caches that a draft tree can be verified in, and the record of what they hold.

A TreeKVCache speaks mlx-lm's cache protocol (``offset``, ``update_and_fetch``, ``make_mask``), so
mlx-lm's models use it unchanged. While a tree is verified its rows are written after the committed
ones without advancing ``offset``; committing keeps the rows of the accepted path, and a tree that
is never committed is simply overwritten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.base import create_causal_mask

from .forward_context import BUFFER_STEP, ForwardContext, round_up
from .kept_points import KeptPoints
from .layer_cache import LayerCache

# Rows that a windowed layer keeps beyond its window, so that this many tokens can be taken back.
REWIND_MARGIN = 256


class TreeKVCache(LayerCache):
    """Keys and values of one attention layer, shape (1, heads, rows, head_dim) each.

    Rows stand in the order of their positions. A layer with a sliding window keeps the window and a
    margin, and forgets older rows when its buffer is full, so its memory is bounded.

    Args:
        context: The target's.
        window: Positions that a row sees back, itself included; None: all.
        keeps_points: Whether a window is kept at the ends of prompts, for layers beside it that
            can go back to these only.
    """

    step = BUFFER_STEP

    def __init__(
        self, context: ForwardContext, window: int | None = None, *, keeps_points: bool = False
    ):
        self.offset = 0
        self.window = window
        self.keys: Any = None
        self.values: Any = None
        self._start = 0  # position of the buffer's first row
        self._fetched = (0, 0)  # rows that attention was last given
        self._context = context
        self._keeps_points = keeps_points and window is not None
        self._points: KeptPoints[tuple[mx.array, mx.array]] = KeptPoints()

    @property
    def mlx_cache(self) -> Any:
        """What the model is given: this object."""
        return self

    @property
    def start(self) -> int:
        """Position of the buffer's first row."""
        return self._start

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Append rows, (1, heads, n, head_dim) each, and return all rows attention may need."""
        n = _leaves(keys)[0].shape[2]
        prefix = self._prefix()
        length = self._length(n)
        if not self._context.replaying:
            self._reserve(keys, values, length - prefix)
        row = self.offset - self._start
        self._fetched = row - prefix, row - prefix + length
        if self._context.replaying:
            return self.keys_and_values()
        self._write(row, row + n, keys, values)
        if not self._context.active:
            self.offset += n
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Any, Any]:
        """The rows that ``update_and_fetch`` last returned, for layers that share them."""
        first, end = self._fetched
        if isinstance(self.keys, mx.array):
            return self.keys[..., first:end, :], self.values[..., first:end, :]
        cut: tuple[Any, Any] = tree_map(lambda x: x[..., first:end, :], (self.keys, self.values))
        return cut

    def _write(self, row: int, end: int, keys: Any, values: Any) -> None:
        if isinstance(keys, mx.array):
            self.keys[..., row:end, :] = keys
            self.values[..., row:end, :] = values
            return
        held, new = [self.keys, self.values], [keys, values]
        for buffer, rows in zip(_leaves(held), _leaves(new), strict=True):
            buffer[..., row:end, :] = rows

    def _prefix(self) -> int:
        """How many committed rows the next rows can see."""
        return self.offset if self.window is None else min(self.offset, self.window - 1)

    def _length(self, n: int) -> int:
        """How many rows attention is given with the next ``n``."""
        rows = self._prefix() + n
        return rows if self._context.tree is None else self._context.padded(rows)

    def _reserve(self, keys: Any, values: Any, rows: int) -> None:
        """Make room after the committed rows for ``rows`` like those given."""
        used = self.offset - self._start
        if self.keys is None:
            room = self._room(used, rows)
            blank: list[Any] = tree_map(lambda x: _blank(x, room), [keys, values])
            self.keys, self.values = blank
        elif used + rows > _leaves(self.keys)[0].shape[2]:
            kept = used if self.window is None else min(used, self.window - 1 + REWIND_MARGIN)
            self._start = self.offset - kept
            lo, room, held = used - kept, self._room(kept, rows), [self.keys, self.values]
            moved = tree_map(lambda x: _moved(x, lo, used, room), held)
            self.keys, self.values = moved

    def _room(self, kept: int, rows: int) -> int:
        """Rows of a buffer for those kept and so many more.

        A full window's needs a step of room to spare, or it would move with every row. On CUDA mlx
        takes a buffer of full steps for one of mlx-lm's, and gives a single row all of it from the
        first one on; a window begins further on, so its buffer has a row too many for that.
        """
        if self.window is None:
            return round_up(kept + rows, self.step)
        room = kept + round_up(rows, self.step)
        return room + (self._context.pads_keys and room % self.step == 0)

    def make_mask(
        self, n: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The attention mask for ``n`` new rows, as mlx-lm's: None, "causal" or a bool array."""
        window = window_size or self.window
        if self._context.active and window and self.window:
            # What a single row would see: a model may ask for more than the layer keeps (PLaMo 3).
            window = min(window, self.window)
        prefix = self._prefix()
        if self._context.tree is not None:
            return self._context.mask(prefix, window, self._length(n))
        beyond = window is not None and prefix + n > window
        if beyond or (return_array and n > 1):
            return create_causal_mask(n, prefix, window_size=window)
        return None if n == 1 else "causal"

    def commit(self, path: Sequence[int]) -> None:
        """Keep the verified rows ``path`` (indices into the tree, root first), forget the rest."""
        if self.keys is None:
            return  # a layer that this model never writes
        if list(path) != list(range(len(path))):
            self._gather(self.offset - self._start, mx.array(list(path)))
        self.offset += len(path)

    def _gather(self, row: int, path: mx.array) -> None:
        """Move the rows ``row + path`` to ``row`` and after it."""
        end = row + path.shape[0]
        for buffer in _leaves([self.keys, self.values]):
            buffer[..., row:end, :] = mx.take(buffer, path + row, axis=2)

    def blank(self, rows: int) -> None:
        """See :class:`LayerCache`."""
        if self.keys is not None:
            first = self.offset - self._start
            for buffer in _leaves([self.keys, self.values]):
                buffer[..., first : first + rows, :] = 0

    def commit_all(self, rows: int) -> None:
        """Keep the window at the end of a piece of a prompt, where that is asked for."""
        if not self._keeps_points or self.keys is None:
            return
        end = self.offset - self._start
        first = end - self._prefix()
        window = [mx.contiguous(buffer[..., first:end, :]) for buffer in (self.keys, self.values)]
        mx.async_eval(window)  # or it would keep the whole buffer, and that from being written into
        self._points.add(self.offset - rows, self.offset, (window[0], window[1]))

    def can_rewind(self, length: int) -> bool:
        """Whether the rows needed to continue from ``length`` tokens are still here."""
        if self.keys is None:
            return True
        if length > self.offset:
            return False
        return self._reaches(length) or self._points.find(length) is not None

    def _reaches(self, length: int) -> bool:
        return self.window is None or self._start <= max(0, length - self.window + 1)

    def rewind_points(self) -> list[int]:
        """Where a window was kept."""
        return self._points.positions

    def rewind(self, length: int) -> None:
        """Forget all rows at and after position ``length``."""
        if self.keys is None:
            return
        if not self._reaches(length):
            kept = self._points.find(length)
            assert kept is not None
            self.keys, self.values = kept
            self._start = length - self.keys.shape[2]
        self.offset = length
        self._points.forget_after(length)

    def reset(self) -> None:
        """Forget everything and free the buffers."""
        self.offset = self._start = 0
        self.keys = self.values = None
        self._points = KeptPoints()

    def copy(self) -> LayerCache:
        """See :class:`LayerCache`; a slice of all of a buffer is an array of its own."""
        made = copy.copy(self)
        if self.keys is not None:
            made.keys, made.values = tree_map(lambda x: x[...], [self.keys, self.values])
        made._points = self._points.copy()
        return made

    def content(self) -> dict[str, Any]:
        """See :class:`LayerCache`; of a window, all rows that are still here."""
        used, rows = self.offset - self._start, None
        if self.keys is not None and used:
            rows = tree_map(lambda x: x[..., :used, :], [self.keys, self.values])
        points = self._points.to_data(list)
        return {"offset": self.offset, "start": self._start, "rows": rows, "points": points}

    def take_over(self, content: dict[str, Any]) -> None:
        """See :class:`LayerCache`."""
        self.offset, self._start, rows = content["offset"], content["start"], content["rows"]
        if rows is not None:
            if any(leaf.shape[2] != self.offset - self._start for leaf in _leaves(rows)):
                raise ValueError("rows are not as many as positions")
            self.keys, self.values = rows
        self._points.take_over(content["points"], lambda pair: (pair[0], pair[1]))

    def adopt(self, keys: mx.array, values: mx.array, length: int) -> None:
        """Take over the committed rows of a text, (1, heads, rows, head_dim), from an empty cache.

        Args:
            keys: Of positions 0 to ``length`` - 1; of a window, only those that it still sees stay.
            values: Likewise.
            length: Number of rows.
        """
        self._start = 0 if self.window is None else max(0, length - self.window + 1)
        rows = (buffer[..., self._start : length, :] for buffer in (keys, values))
        self.keys, self.values = (mx.contiguous(buffer) for buffer in rows)
        self.offset = length

    @property
    def state(self) -> tuple[Any, ...]:
        """The arrays to evaluate."""
        return () if self.keys is None else (self.keys, self.values)

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes, with the windows that are kept."""
        kept = [array for pair in self._points.contents for array in pair]
        return super().nbytes + sum(int(array.nbytes) for array in kept)

    def size(self) -> int:
        """Number of tokens this layer can still see, in mlx-lm's terms."""
        return self._prefix()

    def empty(self) -> bool:
        """Whether nothing was ever written."""
        return self.keys is None

    def is_trimmable(self) -> bool:
        """mlx-lm's question; rows can always be taken back, up to the margin for windows."""
        return True


def _blank(like: mx.array, rows: int) -> mx.array:
    return mx.zeros((*like.shape[:2], rows, like.shape[3]), dtype=like.dtype)


def _moved(old: mx.array, lo: int, hi: int, room: int) -> mx.array:
    """Rows lo..hi of ``old`` at the head of a buffer of ``room`` rows."""
    return mx.concatenate([old[..., lo:hi, :], _blank(old, room - (hi - lo))], axis=2)


def _leaves(buffers: Any) -> list[mx.array]:
    """The arrays of a buffer: one, or those of a quantised one."""
    if isinstance(buffers, mx.array):
        return [buffers]
    return [leaf for buffer in buffers for leaf in _leaves(buffer)]


class ChunkedTreeKVCache(TreeKVCache):
    """Keys and values of a layer that attends within chunks of the text (Llama 4).

    The model makes the mask of such a layer itself, from ``start_position``: the position of the
    first row that it is given. While a tree is verified its mask comes from here.
    """

    def __init__(self, context: ForwardContext, chunk: int):
        super().__init__(context, window=chunk + 1)
        self.chunk = chunk

    def make_mask(
        self, n: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The attention mask for the ``n`` nodes of a tree; for other rows, what a window sees."""
        if self._context.tree is None:
            return super().make_mask(n, window_size, return_array)
        prefix, length = self._prefix(), self._length(n)
        return self._context.chunk_mask(prefix, self.offset, self.chunk, length)

    @property
    def start_position(self) -> int:
        """Position of the first row that attention is given."""
        return self.offset - self._prefix()

    def maybe_trim_front(self) -> None:
        """mlx-lm's request to drop rows beyond a chunk; they never show here."""
