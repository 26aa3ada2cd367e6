"""Key/value caches that a draft tree can be verified in, and the record of what they hold.

A TreeCache speaks mlx-lm's cache protocol (``offset``, ``update_and_fetch``, ``make_mask``), so
mlx-lm's models use it unchanged. While a tree is verified its rows are written behind the committed
ones without advancing ``offset``; committing keeps the rows of the accepted path, and a tree that
is never committed is simply overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask

from .tree import DraftTree

# Rows that a windowed layer keeps beyond its window, so that this many tokens can be taken back.
REWIND_MARGIN = 256


class Verification:
    """What the layers of one target need to know while they run over uncommitted rows.

    Attributes:
        active: Whether the rows now being computed stay uncommitted.
        tree: The tree under verification; None for a single row, which needs no mask.
    """

    def __init__(self) -> None:
        self.active = False
        self.tree: DraftTree | None = None
        self._positions: dict[int, mx.array] = {}
        self._masks: dict[tuple[int, int | None], mx.array] = {}

    @contextmanager
    def over(self, tree: DraftTree) -> Iterator[None]:
        """Verify ``tree`` inside the block: layers write its rows without committing them."""
        self.active, self.tree = True, tree if len(tree) > 1 else None
        try:
            yield
        finally:
            self.active, self.tree = False, None
            self._positions.clear()
            self._masks.clear()

    def positions(self, offset: int) -> mx.array:
        """Positions of the nodes, int32 (n,), when the root stands at ``offset``."""
        assert self.tree is not None
        if offset not in self._positions:
            self._positions[offset] = self.tree.depths + offset
        return self._positions[offset]

    def mask(self, prefix: int, window: int | None) -> mx.array:
        """Bool (n, prefix + n): the committed prefix, then ancestors and self.

        Args:
            prefix: Number of committed rows that the layer hands to attention, the latest ones.
            window: A node sees only the rows less than this many positions back; None: all.
        """
        assert self.tree is not None
        if (prefix, window) not in self._masks:
            self._masks[prefix, window] = self._make_mask(self.tree, prefix, window)
        return self._masks[prefix, window]

    @staticmethod
    def _make_mask(tree: DraftTree, prefix: int, window: int | None) -> mx.array:
        seen = mx.ones((len(tree), prefix), dtype=mx.bool_)
        if window is None:
            return mx.concatenate([seen, tree.ancestors], axis=1)
        back = mx.concatenate([mx.arange(-prefix, 0), tree.depths])
        near = tree.depths[:, None] - back[None, :] < window
        return mx.concatenate([seen, tree.ancestors], axis=1) & near


class TreeCache:
    """Keys and values of one attention layer, shape (1, heads, rows, head_dim) each.

    Rows stand in the order of their positions. A layer with a sliding window keeps the window and a
    margin, and forgets older rows when its buffer is full, so its memory is bounded.
    """

    step = 256

    def __init__(self, verification: Verification, window: int | None = None):
        self.offset = 0
        self.window = window
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._start = 0  # position of the buffer's first row
        self._verification = verification

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows, (1, heads, n, head_dim) each, and return all rows attention may need."""
        n = keys.shape[2]
        self._reserve(keys, values)
        assert self.keys is not None
        assert self.values is not None
        row = self.offset - self._start
        self.keys[..., row : row + n, :] = keys
        self.values[..., row : row + n, :] = values
        first = row - self._prefix()
        if not self._verification.active:
            self.offset += n
        return self.keys[..., first : row + n, :], self.values[..., first : row + n, :]

    def _prefix(self) -> int:
        """How many committed rows the next rows can see."""
        return self.offset if self.window is None else min(self.offset, self.window - 1)

    def _reserve(self, keys: mx.array, values: mx.array) -> None:
        """Make room behind the committed rows for as many as ``keys`` has."""
        used = self.offset - self._start
        needed = used + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = self._blank(keys, needed), self._blank(values, needed)
        elif needed > self.keys.shape[2]:
            kept = used if self.window is None else min(used, self.window - 1 + REWIND_MARGIN)
            self._start = self.offset - kept
            room = kept + keys.shape[2]
            self.keys = self._moved(self.keys, keys, used - kept, used, room)
            self.values = self._moved(self.values, values, used - kept, used, room)

    def _blank(self, like: mx.array, rows: int) -> mx.array:
        rows = -(-rows // self.step) * self.step
        return mx.zeros((*like.shape[:2], rows, like.shape[3]), dtype=like.dtype)

    def _moved(self, old: mx.array, like: mx.array, lo: int, hi: int, room: int) -> mx.array:
        """Rows lo..hi of ``old`` at the head of a buffer with at least ``room`` rows."""
        spare = self._blank(like, room - (hi - lo))
        return mx.concatenate([old[..., lo:hi, :], spare], axis=2)

    def make_mask(
        self, n: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The attention mask for ``n`` new rows, as mlx-lm's: None, "causal" or a bool array."""
        window = window_size or self.window
        prefix = self._prefix()
        if self._verification.tree is not None:
            return self._verification.mask(prefix, window)
        beyond = window is not None and prefix + n > window
        if beyond or return_array:
            return create_causal_mask(n, prefix, window_size=window)
        return None if n == 1 else "causal"

    def commit(self, path: Sequence[int]) -> None:
        """Keep the verified rows ``path`` (indices into the tree, root first), forget the rest."""
        if list(path) != list(range(len(path))):
            assert self.keys is not None
            assert self.values is not None
            row = self.offset - self._start
            rows = mx.array(list(path)) + row
            end = row + len(path)
            self.keys[..., row:end, :] = mx.take(self.keys, rows, axis=2)
            self.values[..., row:end, :] = mx.take(self.values, rows, axis=2)
        self.offset += len(path)

    def can_rewind(self, length: int) -> bool:
        """Whether the rows needed to go on from ``length`` tokens are still here."""
        if length > self.offset:
            return False
        return self.window is None or self._start <= max(0, length - self.window + 1)

    def rewind(self, length: int) -> None:
        """Forget all rows at and after position ``length``."""
        self.offset = length

    def reset(self) -> None:
        """Forget everything and free the buffers."""
        self.offset = self._start = 0
        self.keys = self.values = None

    @property
    def state(self) -> tuple[mx.array, ...]:
        """The arrays to evaluate."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        return sum(int(array.nbytes) for array in self.state)

    def size(self) -> int:
        """Number of tokens this layer can still see, in mlx-lm's terms."""
        return self._prefix()

    def empty(self) -> bool:
        """Whether nothing was ever written."""
        return self.keys is None

    def is_trimmable(self) -> bool:
        """mlx-lm's question; rows can always be taken back, up to the margin for windows."""
        return True


class PromptCache:
    """The caches of all layers and the tokens they hold.

    Attributes:
        layers: One cache a layer, as mlx-lm's models take them.
        tokens: The committed tokens; every layer holds exactly these.
    """

    def __init__(self, layers: list[TreeCache]):
        self.layers = layers
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def reuse(self, prompt: Sequence[int]) -> int:
        """Rewind to the longest prefix shared with ``prompt``; return its length.

        At least the prompt's last token is left over, for the first step.
        """
        shared = 0
        for held, wanted in zip(self.tokens, prompt[:-1], strict=False):
            if held != wanted:
                break
            shared += 1
        if not all(layer.can_rewind(shared) for layer in self.layers):
            shared = 0  # a window has forgotten rows that it would need
        self.rewind(shared)
        return shared

    def extend(self, tokens: Sequence[int]) -> None:
        """Note that the layers' latest rows are those of ``tokens``."""
        self.tokens.extend(tokens)

    def commit(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the rows of an accepted path and note its tokens, one a row."""
        for layer in self.layers:
            layer.commit(path)
        self.tokens.extend(tokens)

    def rewind(self, length: int) -> None:
        """Forget every token at and after position ``length``, in every layer."""
        if length == 0:
            self.reset()
            return
        for layer in self.layers:
            layer.rewind(length)
        del self.tokens[length:]

    def reset(self) -> None:
        """Forget everything and free the buffers."""
        for layer in self.layers:
            layer.reset()
        self.tokens.clear()

    @property
    def state(self) -> list[tuple[mx.array, ...]]:
        """All layers' arrays, to evaluate."""
        return [layer.state for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(layer.nbytes for layer in self.layers)
