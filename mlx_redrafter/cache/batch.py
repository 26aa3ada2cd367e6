"""Keys and values of several texts at once, each with its own number of committed tokens.

A text keeps its rows in the first columns of the buffers, in the order of their positions, and the
rows of its tree are written right after them. So texts of any lengths share one forward, each
accepts its own number of tokens, and nothing is moved but the rows of an accepted path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList

from ..errors import RedrafterError
from .attention import ChunkedTreeKVCache, TreeKVCache
from .batch_tree import BatchTree
from .composite import CacheGroup
from .forward_context import BUFFER_STEP, ForwardContext, round_up
from .layer_cache import LayerCache
from .prompt_cache import PromptCache
from .recurrent import BatchRecurrentCache, RecurrentCache


class BatchSequence(PromptCache):
    """One text of a batch: its tokens. Its rows are the batch's.

    Args:
        joined: The text's caches when it was alone.

    Attributes:
        path: The nodes that the last commit keeps, root first.
    """

    def __init__(self, joined: PromptCache):
        super().__init__([])
        self.tokens = list(joined.tokens)
        self.memory = joined.memory and joined.memory.copy()
        self.weights = joined.weights
        self.path: list[int] = []

    def commit(self, path: Sequence[int], tokens: Sequence[int]) -> None:
        """Note the path and its tokens; :meth:`BatchCache.commit` keeps the rows."""
        super().commit(path, tokens)
        self.path = list(path)


class BatchKVCache:
    """Keys and values of one attention layer, (batch, heads, columns, head_dim) each.

    It speaks mlx-lm's cache protocol to the model. A window is kept as a mask only.

    Args:
        context: The target's.
        window: Positions that a row sees back, itself included; None: all.
        chunk: Positions of a chunk of the text that rows attend within; None: no chunks.
    """

    def __init__(self, context: ForwardContext, window: int | None, chunk: int | None):
        self.keys: Any = None
        self.values: Any = None
        self.window = window
        self.chunk = chunk
        self._context = context

    @property
    def _tree(self) -> BatchTree:
        tree = self._context.tree
        assert isinstance(tree, BatchTree), "a batch's caches are for batches of trees only"
        return tree

    @property
    def offset(self) -> int:
        """The longest text's committed tokens; hooks know those of the others."""
        return self._tree.longest

    @property
    def start_position(self) -> int:
        """Position of the first column."""
        return 0

    def maybe_trim_front(self) -> None:
        """mlx-lm's request to drop rows beyond a chunk; masks hide them."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the trees' rows, (batch, heads, n, head_dim); return all that may be looked at."""
        tree = self._tree
        end = tree.longest + keys.shape[2]
        if self.keys is None:
            self.keys, self.values = keys[:, :, :0], values[:, :, :0]
        if self.keys.shape[2] < end:
            self.keys, self.values = _with_room(self.keys, end), _with_room(self.values, end)
        self.keys = mx.put_along_axis(self.keys, tree.columns, keys, axis=2)
        self.values = mx.put_along_axis(self.values, tree.columns, values, axis=2)
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What ``update_and_fetch`` last returned, for layers that share it."""
        end = self._tree.longest + len(self._tree)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def make_mask(
        self,
        n: int,
        window_size: int | None = None,
        return_array: bool = False,  # noqa: ARG002
    ) -> mx.array:
        """The mask of the ``n`` nodes of each text, bool (batch, 1, n, columns), never a name."""
        assert n == len(self._tree)
        window = window_size or self.window
        if window and self.window:
            window = min(window, self.window)  # see TreeKVCache.make_mask
        return self._context.batch_mask(None if self.chunk else window, self.chunk)

    def move(self, source: mx.array, columns: mx.array) -> None:
        """Copy the rows at ``source`` to ``columns``, both (batch, 1, k, 1)."""
        if self.keys is None:
            return  # a layer that this model never writes
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            rows = mx.take_along_axis(buffer, source, axis=2)
            setattr(self, name, mx.put_along_axis(buffer, columns, rows, axis=2))

    def blank(self, columns: mx.array) -> None:
        """Put zeros at ``columns``, (batch, 1, k, 1)."""
        if self.keys is None:
            return
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            zeros = mx.zeros((*buffer.shape[:2], columns.shape[2], buffer.shape[3]), buffer.dtype)
            setattr(self, name, mx.put_along_axis(buffer, columns, zeros, axis=2))

    def compose(self, kept: Sequence[int], joined: Sequence[TreeKVCache], longest: int) -> None:
        """Keep the texts ``kept``, in that order, and put others after them.

        Args:
            kept: Places in the batch.
            joined: Entries of single texts.
            longest: Committed tokens of the longest of all these; what others had beyond is freed.
        """
        columns = round_up(longest, BUFFER_STEP)
        for name in ("keys", "values"):
            old, parts = getattr(self, name), []
            if old is not None and kept:
                parts.append(mx.take(old[:, :, :columns], mx.array(list(kept)), axis=0))
            placed = (_placed(layer, getattr(layer, name)) for layer in joined)
            parts += [rows for rows in placed if rows is not None]
            wide = [_with_room(part, columns) for part in parts]
            setattr(self, name, mx.concatenate(wide) if wide else None)

    @property
    def state(self) -> tuple[Any, ...]:
        """The arrays to evaluate."""
        return () if self.keys is None else (self.keys, self.values)

    def empty(self) -> bool:
        """Whether nothing was ever written."""
        return self.keys is None

    def size(self) -> int:
        """Columns in use, in mlx-lm's terms."""
        return self.offset


def _with_room(buffer: mx.array, columns: int) -> mx.array:
    """A buffer with room for ``columns`` columns, rounded up."""
    spare = round_up(columns, BUFFER_STEP) - buffer.shape[2]
    if spare <= 0:
        return buffer
    blank = mx.zeros((*buffer.shape[:2], spare, buffer.shape[3]), dtype=buffer.dtype)
    return mx.concatenate([buffer, blank], axis=2)


def _placed(layer: TreeKVCache, buffer: Any) -> mx.array | None:
    """A text's committed rows at the columns of their positions."""
    if buffer is None:
        return None
    start = layer.start
    rows: mx.array = buffer[:, :, : layer.offset - start]
    if start:  # rows that a window has passed
        blank = mx.zeros((*rows.shape[:2], start, rows.shape[3]), dtype=rows.dtype)
        rows = mx.concatenate([blank, rows], axis=2)
    return rows


def can_join(cache: PromptCache) -> bool:
    """Whether a single text's caches can become part of a batch: none is quantised or bounded."""
    leaves = (leaf for layer in cache.layers for leaf in layer.leaves)
    return all(_is_batched(leaf) or isinstance(leaf, RecurrentCache) for leaf in leaves)


def _is_batched(layer: LayerCache) -> bool:
    """Whether a batch has such keys and values."""
    return type(layer) in (TreeKVCache, ChunkedTreeKVCache)


class BatchCache:
    """The caches of several texts for one target.

    Args:
        like: An empty cache of the target's, for the kinds of its layers.
        context: The target's.

    Attributes:
        rows: The texts, in the order of the batch.
        seams: The cache list as mlx-lm's models take it.

    Raises:
        RedrafterError: If a layer keeps something else than keys and values.
    """

    def __init__(self, like: PromptCache, context: ForwardContext):
        self.rows: list[BatchSequence] = []
        self._layers: list[BatchKVCache] = []
        self._states: list[BatchRecurrentCache] = []
        self._watched: dict[int, BatchRecurrentCache] = {}
        self.seams = [self._mlx_cache(layer, context) for layer in like.layers]

    def _mlx_cache(self, layer: LayerCache, context: ForwardContext) -> Any:
        if isinstance(layer, CacheGroup):
            before = len(self._states)
            group = CacheList(*(self._mlx_cache(part, context) for part in layer.parts))
            for state in self._states[before:]:
                self._watched[id(group)] = state
            return group
        if isinstance(layer, RecurrentCache):
            state = BatchRecurrentCache(layer.mlx_cache, context)
            self._states.append(state)
            state.watch(self._watched)
            return state.mlx_cache
        if not _is_batched(layer):
            raise RedrafterError(
                f"A batch cannot hold a layer that keeps a {type(layer).__name__}: decode the "
                "prompts one by one."
            )
        assert isinstance(layer, TreeKVCache)
        made = BatchKVCache(context, layer.window, getattr(layer, "chunk", None))
        self._layers.append(made)
        return made

    @property
    def lengths(self) -> list[int]:
        """Committed tokens of each text."""
        return [len(row) for row in self.rows]

    @property
    def state(self) -> list[Any]:
        """All layers' arrays, to evaluate, and what draft heads keep of the texts."""
        memories = (row.memory.state for row in self.rows if row.memory is not None)
        layers = (layer.state for layer in self._layers)
        return [*layers, *(one.state for one in self._states), *memories]

    def begin(self, rows: int) -> dict[int, BatchRecurrentCache]:
        """Announce a forward over ``rows`` rows a text; returns the caches to be watched in it."""
        for state in self._states:
            state.begin(rows)
        return self._watched

    def compose(self, kept: Sequence[int], joined: Sequence[PromptCache]) -> None:
        """Keep the texts ``kept`` (their places), in that order, and let others join after them.

        Args:
            kept: Places in the batch.
            joined: Caches of single texts; their rows are copied.
        """
        parts = [[p for layer in one.layers for p in layer.leaves] for one in joined]
        stay = [self.rows[place] for place in kept]
        longest = max((len(one) for one in (*stay, *joined)), default=0)
        for index, layer in enumerate(self._layers):
            entries = [[p for p in part if isinstance(p, TreeKVCache)] for part in parts]
            layer.compose(kept, [part[index] for part in entries], longest)
        for index, state in enumerate(self._states):
            states = [[p for p in part if isinstance(p, RecurrentCache)] for part in parts]
            state.compose(kept, [part[index] for part in states])
        self.rows = [
            *stay,
            *map(BatchSequence, joined),
        ]

    def extract(self, place: int, into: PromptCache) -> None:
        """Copy what one text has committed into caches of its own.

        Args:
            place: The text's place in the batch.
            into: Empty caches of the same target; windows and recurrent state can be gone on from
                at the text's end only.
        """
        row = self.rows[place]
        parts = [part for layer in into.layers for part in layer.leaves]
        entries = [part for part in parts if isinstance(part, TreeKVCache)]
        for layer, entry in zip(self._layers, entries, strict=True):
            if layer.keys is not None:
                keys, values = (mx.take(b, mx.array([place]), axis=0) for b in layer.state)
                entry.adopt(keys, values, len(row))
        states = [part for part in parts if isinstance(part, RecurrentCache)]
        for state, part in zip(self._states, states, strict=True):
            part.adopt(state.extract(place), len(row))
        into.tokens = list(row.tokens)
        into.memory = row.memory and row.memory.copy()
        into.weights = row.weights
        mx.eval(into.state)

    def blank(self, rows: int) -> None:
        """Put zeros in place of the last forward's rows, of which nothing is committed."""
        columns = mx.array(self.lengths)[:, None] + mx.arange(rows)
        for layer in self._layers:
            layer.blank(columns[:, None, :, None])

    def commit(self) -> None:
        """Keep the rows of the paths that the texts have just committed."""
        paths = [row.path for row in self.rows]
        starts = [len(row) - len(row.path) for row in self.rows]
        for state in self._states:
            state.commit(paths, starts)
        if all(path == list(range(len(path))) for path in paths):
            return
        most = max(len(path) for path in paths)
        full = [[*path, *range(len(path), most)] for path in paths]
        first = mx.array(starts)[:, None]
        source = (first + mx.array(full))[:, None, :, None]
        columns = (first + mx.arange(most))[:, None, :, None]
        for layer in self._layers:
            layer.move(source, columns)
