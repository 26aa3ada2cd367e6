"""What the layers of a target need to know while they run over uncommitted tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import mlx.core as mx

from ..tree import DraftTree
from .batch_tree import BatchTree
from .tree_paths import PathPositions, TreePaths

# Entries by which a key/value buffer grows; mlx-lm names the same number `step`.
BUFFER_STEP = 256


class RowProducts(Protocol):
    """Who computes what modules inside a recurrent one compute row by row."""

    def apply(
        self, module: object, x: mx.array, product: Callable[[mx.array], mx.array]
    ) -> mx.array:
        """``product(x)``, which is what ``module`` gives for ``x``, or the same from elsewhere."""


class ForwardContext:
    """What the layers of one target need to know while they run over uncommitted rows.

    It belongs to the model object, since that is where layers find it. So building a forward's
    graph is one critical section: whoever runs modules holds ``lock``, as the blocks here do.
    Graphs of different threads are evaluated outside of it, side by side.

    Attributes:
        lock: Held while modules of the model run; the same thread may take it again.
        active: Whether the rows now being computed stay uncommitted.
        replaying: Whether a module is only run again to bring its recurrent state to an earlier
            row; attention layers then keep what they have.
        tree: The tree under verification, or the trees of a batch; None where the rows of one text
            simply follow one another.
        watched: By the ``id`` of a cache with recurrent state, what has to hear of the calls
            that change it.
        products: Inside a module with recurrent state, who computes its row-wise parts.
        exploring: While hooks find out which modules hand a cache on, those under way, each with
            the cache that it was given; None otherwise.
        pads_keys: Whether a layer hands attention more rows than a tree needs, so that their number
            seldom changes; the mask hides what is too many.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.active = False
        self.replaying = False
        self.tree: DraftTree | BatchTree | PathPositions | None = None
        self.watched: dict[int, Any] = {}
        self.products: RowProducts | None = None
        self.exploring: list[tuple[Any, Any]] | None = None
        self._paths: TreePaths | None = None
        self.pads_keys = False
        self._positions: dict[int, mx.array] = {}
        self._masks: dict[tuple[int | None, ...], mx.array] = {}

    def padded(self, rows: int) -> int:
        """How many rows attention is given where a tree needs ``rows``.

        Padded they are a multiple of a buffer's step, and of an eighth of the next power of two: at
        most a quarter more in a long text, and four different numbers before it has doubled.
        """
        if not self.pads_keys:
            return rows
        grain = max(BUFFER_STEP, (1 << (rows - 1).bit_length()) // 8)
        return round_up(rows, grain)

    @contextmanager
    def verifying(
        self,
        tree: DraftTree | BatchTree,
        *,
        branching: bool = True,
        watched: dict[int, Any] | None = None,
    ) -> Iterator[None]:
        """Verify ``tree`` inside the block: layers write its rows without committing them.

        Args:
            tree: What is verified.
            branching: Whether the rows need the tree's own mask and positions; a chain does not,
                nor does a root alone.
            watched: See the attribute.
        """
        placed = branching and (isinstance(tree, BatchTree) or len(tree) > 1)
        with self.lock:
            self.active, self.tree = True, tree if placed else None
            self.watched = watched or {}
            try:
                yield
            finally:
                self.active, self.tree, self.watched, self._paths = False, None, {}, None
                self._positions.clear()
                self._masks.clear()

    @contextmanager
    def explore(self) -> Iterator[None]:
        """Find out inside the block which modules hand a cache on to others."""
        with self.lock:
            self.exploring = []
            try:
                yield
            finally:
                self.exploring = None

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run modules again inside the block without writing keys and values."""
        with self.lock:
            self.replaying = True
            try:
                yield
            finally:
                self.replaying = False

    @contextmanager
    def inside(
        self,
        products: RowProducts | None,
        tree: DraftTree | BatchTree | PathPositions | None = None,
    ) -> Iterator[None]:
        """Run a module with recurrent state inside the block.

        Args:
            products: See the attribute.
            tree: What its rows are; None where they follow one another after an offset.
        """
        before = self.tree, self.watched, self.products, self._positions
        self.tree, self.watched, self.products, self._positions = tree, {}, products, {}
        try:
            yield
        finally:
            self.tree, self.watched, self.products, self._positions = before

    @property
    def paths(self) -> TreePaths | None:
        """The paths of the tree under verification; None where rows simply follow one another."""
        tree = self.tree
        if not isinstance(tree, DraftTree | BatchTree) or tree.leaf_bound == 1:
            return None
        if self._paths is None:
            self._paths = TreePaths.of(tree)
        return self._paths

    def positions(self, offset: int | mx.array) -> mx.array:
        """Positions of the nodes when the root stands at ``offset``.

        Returns:
            int32 (n,); for a batch (batch, n), where ``offset`` means the longest text's.
        """
        assert self.tree is not None
        if not isinstance(offset, int):
            return self.tree.positions(offset)
        if offset not in self._positions:
            self._positions[offset] = self.tree.positions(offset)
        return self._positions[offset]

    def batch_mask(self, window: int | None, chunk: int | None) -> mx.array:
        """:meth:`BatchTree.mask`, made once a forward."""
        assert isinstance(self.tree, BatchTree)
        key = (window, chunk)
        if key not in self._masks:
            self._masks[key] = self.tree.mask(window, chunk)
        return self._masks[key]

    def mask(self, prefix: int, window: int | None, length: int | None = None) -> mx.array:
        """Bool (n, length): the committed prefix, then ancestors and self, then nothing.

        Args:
            prefix: Number of committed rows that the layer hands to attention, the latest ones.
            window: A node sees only the rows less than this many positions back; None: all.
            length: Rows that attention is given; None: prefix + n.
        """
        assert isinstance(self.tree, DraftTree)
        key = (prefix, window, length)
        if key not in self._masks:
            self._masks[key] = _widened(self._make_mask(self.tree, prefix, window), length)
        return self._masks[key]

    def chunk_mask(self, prefix: int, offset: int, chunk: int, length: int) -> mx.array:
        """Bool (n, length): as :meth:`mask`, but a node sees only its own chunk of the text.

        Args:
            prefix: See :meth:`mask`.
            offset: The root's position.
            chunk: Positions a chunk.
            length: See :meth:`mask`.
        """
        assert self.tree is not None
        key = (prefix, offset, chunk, length)
        if key not in self._masks:
            own = self.positions(offset) // chunk
            rows = mx.concatenate([mx.arange(offset - prefix, offset) // chunk, own])
            mask = self.mask(prefix, None) & (rows[None, :] == own[:, None])
            self._masks[key] = _widened(mask, length)
        return self._masks[key]

    @staticmethod
    def _make_mask(tree: DraftTree, prefix: int, window: int | None) -> mx.array:
        seen = mx.ones((len(tree), prefix), dtype=mx.bool_)
        if window is None:
            return mx.concatenate([seen, tree.ancestors], axis=1)
        back = mx.concatenate([mx.arange(-prefix, 0), tree.depths])
        near = tree.depths[:, None] - back[None, :] < window
        return mx.concatenate([seen, tree.ancestors], axis=1) & near


def _widened(mask: mx.array, length: int | None) -> mx.array:
    """A mask with columns that hide as many further rows as make ``length``."""
    more = 0 if length is None else length - mask.shape[1]
    return mx.pad(mask, [(0, 0), (0, more)]) if more else mask


def round_up(rows: int, grain: int) -> int:
    """So many rows, or more to make a multiple of ``grain``."""
    return -(-rows // grain) * grain
