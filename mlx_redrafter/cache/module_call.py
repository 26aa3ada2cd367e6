"""One call of a module with recurrent state while a draft is verified, and how it is repeated.

What such a module computes row by row, its matrix products, is computed once for each node of the
tree and kept: when the state of an accepted path is brought about, only the recurrence itself runs
again, over the path's rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import ArraysCache

from .forward_context import ForwardContext
from .tree_paths import PathPositions, TreePaths, take_nodes

RowModule = Callable[[mx.array], mx.array]


@dataclass
class ModuleCall:
    """What was computed, and with which arguments.

    Attributes:
        run: ``run(*args, **kwargs)`` computes it, and changes the state in the caches it is given.
        args: Positional arguments, of which arrays (batch, nodes, ...) hold a row a node.
        kwargs: Keyword arguments, likewise.
        batch: Number of texts.
        nodes: Rows of each.
        paths: How the rows are laid out for it; None where it is given the nodes as they are.
        branching: Whether they are a tree's, and not one text's that follow one another.
        group: The group of caches that it was given; None where it was given recurrent ones only.
        keeps_products: Whether a single row may be repeated with the products that were kept.
        products: By module, what it gave for the nodes, (batch, nodes, ...) each, call by call.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    nodes: int
    paths: TreePaths | None
    branching: bool
    group: Any = None
    keeps_products: bool = True
    products: dict[int, list[mx.array]] = field(default_factory=lambda: defaultdict(list))

    def verify(self, context: ForwardContext) -> Any:
        """Compute it over all nodes; returns what the module does, a row a node."""
        paths = self.paths
        if paths is None:
            with context.inside(_Verified(self), context.tree):
                return self.run(*self.args, **self.kwargs)
        products = _Verified(self)

        def to_rows(value: Any) -> Any:
            return products.to_rows(value) if paths.holds_nodes(value) else value

        def to_nodes(value: Any) -> Any:
            return products.to_nodes(value) if paths.holds_rows(value) else value

        args, kwargs = tree_map(to_rows, [list(self.args), self.kwargs])
        with context.inside(products, paths.placing):
            result = self.run(*args, **kwargs)
        return tree_map(to_nodes, result)

    def replay(
        self,
        context: ForwardContext,
        paths: Sequence[Sequence[int]],
        sequences: Sequence[int] = (0,),
        placing: PathPositions | None = None,
    ) -> None:
        """Compute it again over one path, equally long, of some of the texts.

        Args:
            context: The target's.
            paths: Nodes of each path, the root first.
            sequences: Places of the texts in the batch; the caches hold their states.
            placing: Where the paths stand in their texts; see :class:`TreePaths`.
        """
        rows = len(paths[0])

        def taken(value: Any) -> Any:
            if self.branching and value is not None and value is self.group:
                return tuple(part if _is_state(part) else _NoEntries() for part in value.caches)
            if isinstance(value, mx.array) and value.shape[:2] == (self.batch, self.nodes):
                return take_nodes(value, sequences, paths)
            return self._shortened(value, rows)

        args, kwargs = tree_map(taken, [list(self.args), self.kwargs])
        kept = rows > 1 or self.keeps_products
        products = _Replayed(self, paths, sequences) if kept else None
        with context.replay(), context.inside(products, placing):
            self.run(*args, **kwargs)

    def _shortened(self, value: Any, rows: int) -> Any:
        """A mask (..., nodes, keys) for the first rows of a chain.

        For those of a tree there is none: what attention gives does not bear on the state.
        """
        is_mask = isinstance(value, mx.array) and value.ndim > 1 and value.dtype == mx.bool_
        if not is_mask or value.shape[-2] != self.nodes:
            return value
        if self.branching:
            return None
        return value[..., :rows, : value.shape[-1] - (self.nodes - rows)]


@dataclass
class _Verified:
    """Products inside a call that is being verified: once a node, and kept.

    Attributes:
        call: The call.
        made: Rows of paths that were made of nodes, by ``id``, each with these nodes: who wants
            nodes of them again need not compute the rows.
    """

    call: ModuleCall
    made: dict[int, tuple[mx.array, mx.array]] = field(default_factory=dict)

    def to_rows(self, nodes: mx.array) -> mx.array:
        """Rows of paths, of nodes."""
        assert self.call.paths is not None
        rows = self.call.paths.to_rows(nodes)
        self.made[id(rows)] = rows, nodes
        return rows

    def to_nodes(self, rows: mx.array) -> mx.array:
        """Nodes, of rows of paths."""
        assert self.call.paths is not None
        known = self.made.get(id(rows))
        return self.call.paths.to_nodes(rows) if known is None else known[1]

    def apply(self, module: object, x: mx.array, product: RowModule) -> mx.array:
        """What a row-wise module gives for its rows."""
        call, paths = self.call, self.call.paths
        if paths is None:
            result = product(x)
            if x.ndim == 3 and x.shape[:2] == (call.batch, call.nodes):
                call.products[id(module)].append(result)
            return result
        if x.ndim != 3 or not paths.holds_rows(x):
            return product(x)
        result = product(self.to_nodes(x))
        call.products[id(module)].append(result)
        return self.to_rows(result)


@dataclass
class _Replayed:
    """Products inside a call that is repeated: those that were kept, along the paths."""

    call: ModuleCall
    paths: Sequence[Sequence[int]]
    sequences: Sequence[int]
    used: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def apply(self, module: object, x: mx.array, product: RowModule) -> mx.array:
        """What a row-wise module gave for the rows of these paths."""
        kept, at = self.call.products.get(id(module), []), self.used[id(module)]
        if x.ndim != 3 or x.shape[:2] != (len(self.paths), len(self.paths[0])) or at >= len(kept):
            return product(x)
        self.used[id(module)] += 1
        return take_nodes(kept[at], self.sequences, self.paths)


class _NoEntries:
    """A key/value cache for a replay: what attention gives does not bear on the state."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The rows as they are."""
        return keys, values


def _is_state(cache: Any) -> bool:
    return isinstance(cache, ArraysCache)
