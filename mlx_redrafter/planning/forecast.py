"""What each beam shape would yield, from the trees that were drafted lately.

A smaller shape is judged by the part of a wider tree that it would have drafted; of shapes that no
tree covers nothing is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ..drafting.recorded import RecordedDrafts
from ..drafting.shape import BeamShape
from ..engine.step import StepRecord
from ..tree import HostTree
from .acceptance import KINDS, FloatArray, kinds_of, narrowed, subtree
from .shapes import covers

REMEMBERED_PROBES = 20
REMEMBERED_OTHERS = 24
# Trees that have to cover a shape before anything is said of it.
ENOUGH_TREES = 1
# Trees of one place may be easier than those of another: by no more than this is it put right.
PLACES_DIFFER = 2.5


@dataclass(frozen=True)
class Forecast:
    """What one choice promises.

    Attributes:
        shape: The beam shape; None is plain decoding.
        tokens_per_step: Expected tokens of a step.
        step_seconds: Expected time of a step.
        trees: Remembered trees that show it; None where nothing has to.
    """

    shape: BeamShape | None
    tokens_per_step: float
    step_seconds: float
    trees: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Expected speed."""
        return self.tokens_per_step / self.step_seconds


@dataclass(frozen=True)
class Yield:
    """What a step of a shape is expected to yield.

    Attributes:
        accepted: Drafted tokens accepted.
        whole: Chance that one of the deepest nodes is accepted, and the whole length with it.
        path_rows: Rows of the root-to-leaf paths, the root left out of each, if they are counted.
        trees: Remembered trees that show it; None where nothing has to.
    """

    accepted: float
    whole: float
    path_rows: float
    trees: int | None = None


@dataclass(frozen=True)
class _Counts:
    """A remembered tree as each candidate would have drafted it; or several trees, stacked.

    Attributes:
        nodes: Nodes by candidate and kind.
        deepest: Those of them at the candidate's full length.
        path_rows: Leaves times depth, by candidate.
        covered: Whether the tree holds the candidate's draft.
    """

    nodes: FloatArray
    deepest: FloatArray
    path_rows: FloatArray
    covered: npt.NDArray[np.bool_]

    @classmethod
    def stacked(cls, counts: Sequence[_Counts]) -> _Counts:
        """All in one, by tree first."""
        return cls(
            np.stack([one.nodes for one in counts]),
            np.stack([one.deepest for one in counts]),
            np.stack([one.path_rows for one in counts]),
            np.stack([one.covered for one in counts]),
        )


@dataclass(frozen=True, eq=False)
class RememberedTree:
    """A tree that was drafted; each is a key of its own.

    Attributes:
        number: The later the tree was added, the larger.
        tree: It.
        shape: What it was drafted with.
    """

    number: int
    tree: HostTree
    shape: BeamShape


@dataclass(frozen=True)
class _SavedTrees:
    """Trees as they were remembered, and the numbers of each kind of them."""

    trees: tuple[RememberedTree, ...]
    kinds: tuple[tuple[int, ...], ...]


class TreeMemory:
    """Trees drafted lately, probes and some of the chosen ones; shared by all batch sizes.

    Args:
        recorded: Drafts from before, remembered as probes.

    Attributes:
        trees: They, the latest last.
    """

    def __init__(self, recorded: RecordedDrafts | None = None) -> None:
        self.trees: list[RememberedTree] = []
        self._probes: deque[int] = deque(maxlen=REMEMBERED_PROBES)
        self._others: deque[int] = deque(maxlen=REMEMBERED_OTHERS)
        self._recorded: deque[int] = deque(maxlen=REMEMBERED_PROBES)
        self._kinds = (self._probes, self._others, self._recorded)
        self._added = 0
        if recorded is not None:
            for draft in recorded.drafts:
                self._put(self._recorded, draft.tree, recorded.shape)

    @property
    def has_recorded(self) -> bool:
        """Whether recorded trees are left; each of the text's own replaces one."""
        return len(self._recorded) > 0

    def add(self, tree: HostTree, shape: BeamShape, *, probe: bool = True) -> None:
        """Remember a tree drafted with a shape, of whose nodes only the first may have been kept:
        its likeliest beam stands before all others.
        """
        kept = len(tree.tokens) - 1
        if kept == 0:
            return
        if kept <= shape.length:
            shape = BeamShape(1, kept)
        elif kept < shape.nodes:
            shape = replace(shape, node_budget=kept)
        if self._recorded:
            self._recorded.popleft()
        self._put(self._probes if probe else self._others, tree, shape)

    def add_records(
        self, records: Sequence[StepRecord], shape: BeamShape, *, probe: bool = True
    ) -> None:
        """Remember what was drafted in a step, but for what the text's end cut, which says nothing
        of a whole draft, and for what will be told of as a whole.
        """
        for record in records:
            if not record.cut and not record.watched:
                self.add(record.guessed.tree, shape, probe=probe)

    def save(self) -> _SavedTrees:
        """What is remembered by now, for :meth:`restore`."""
        return _SavedTrees(tuple(self.trees), tuple(tuple(kind) for kind in self._kinds))

    def restore(self, saved: _SavedTrees) -> None:
        """Forget the trees that were added since."""
        self.trees = list(saved.trees)
        for kind, numbers in zip(self._kinds, saved.kinds, strict=True):
            kind.clear()
            kind.extend(numbers)

    def begin_again(self, drafts: Sequence[tuple[BeamShape, StepRecord]]) -> None:
        """Remember these trees and no others."""
        self.restore(_SavedTrees((), ((),) * len(self._kinds)))
        for shape, record in drafts:
            self.add_records([record], shape, probe=False)

    def forget_recorded(self) -> None:
        """Drafts failed that were chosen by recorded ones: this text is unlike those."""
        self._recorded.clear()
        self._forget()

    def _put(self, kind: deque[int], tree: HostTree, shape: BeamShape) -> None:
        self._added += 1
        kind.append(self._added)
        self._forget()
        self.trees.append(RememberedTree(self._added, tree, shape))

    def _forget(self) -> None:
        """Keep the trees that are counted among one kind or another."""
        remembered = {*self._probes, *self._others, *self._recorded}
        self.trees = [one for one in self.trees if one.number in remembered]

    def covering(self, shape: BeamShape) -> int:
        """How many of the trees hold what a shape would have drafted."""
        return sum(covers(one.shape, shape) for one in self.trees)


class Yields:
    """What candidates would have yielded of the remembered trees.

    Args:
        candidates: The shapes to judge.
        memory: Where trees are remembered.
        paths: Whether rows of paths are counted, see ``CostModel.path_row``.
    """

    def __init__(self, candidates: Sequence[BeamShape], memory: TreeMemory, *, paths: bool = True):
        self.candidates = tuple(candidates)
        self._memory, self._paths = memory, paths
        # Kept as long as anybody holds the tree, who may have the memory restored to it.
        self._counts: WeakKeyDictionary[RememberedTree, _Counts] = WeakKeyDictionary()
        self._stacked: list[RememberedTree] = []
        self._all: _Counts | None = None  # of these, stacked; of no trees None

    def count(self) -> _Counts | None:
        """What each candidate would have drafted of each tree; counted once a tree."""
        trees = self._memory.trees
        if trees != self._stacked:
            counts = [self._counts_of(one) for one in trees]
            self._stacked, self._all = list(trees), _Counts.stacked(counts) if counts else None
        return self._all

    def _counts_of(self, tree: RememberedTree) -> _Counts:
        counts = self._counts.get(tree)
        if counts is None:
            counts = self._counts[tree] = self._count(tree.tree, tree.shape)
        return counts

    def expected(
        self, chances: FloatArray, reference: BeamShape | None = None
    ) -> dict[BeamShape, Yield]:
        """What is known of the candidates.

        Args:
            chances: Chance of acceptance of each kind of node.
            reference: A candidate that most trees cover: by it places are made comparable.
        """
        counts = self.count()
        if counts is None:
            return {}
        covered, accepted, whole = counts.covered, counts.nodes @ chances, counts.deepest @ chances
        scale = self._place_scale(accepted, covered, reference)
        trees = covered.sum(axis=0)
        accepted, whole = _means(accepted, covered) * scale, _means(whole, covered) * scale
        rows = _means(counts.path_rows, covered)
        return {
            shape: Yield(
                float(accepted[place]),
                min(1.0, float(whole[place])),
                float(rows[place]),
                int(trees[place]),
            )
            for place, shape in enumerate(self.candidates)
            if trees[place] >= ENOUGH_TREES
        }

    def _place_scale(
        self,
        accepted: FloatArray,
        covered: npt.NDArray[np.bool_],
        reference: BeamShape | None,
    ) -> FloatArray:
        """By how much the trees that cover each candidate were easier or harder than all."""
        if reference not in self.candidates:
            reference = self.candidates[int(covered.sum(axis=0).argmax())]
        place = self.candidates.index(reference)
        own, of_all = accepted[:, place, None], covered[:, place, None]
        there = _means(own, of_all & covered)
        scale = np.divide(_means(own, of_all), there, out=np.ones_like(there), where=there > 0)
        return np.clip(scale, 1 / PLACES_DIFFER, PLACES_DIFFER)

    def _count(self, tree: HostTree, shape: BeamShape) -> _Counts:
        kinds, depths = np.array(kinds_of(tree)), np.array(tree.depths)
        size = len(self.candidates)
        nodes, deepest = np.zeros((size, KINDS)), np.zeros((size, KINDS))
        rows, covered = np.zeros(size), np.zeros(size, np.bool_)
        by_width: dict[int, list[int]] = {}
        for place, candidate in enumerate(self.candidates):
            if not covers(shape, candidate):
                continue
            covered[place] = True
            if candidate.width not in by_width:
                by_width[candidate.width] = narrowed(tree, candidate.width)
            drafted = np.array(subtree(tree, candidate, by_width[candidate.width]), np.int64)
            nodes[place] = np.bincount(kinds[drafted], minlength=KINDS)
            at_end = drafted[depths[drafted] == candidate.length]
            deepest[place] = np.bincount(kinds[at_end], minlength=KINDS)
            if self._paths:
                rows[place] = path_rows(tree, drafted.tolist())
        return _Counts(nodes, deepest, rows, covered)


def _means(values: FloatArray, counted: npt.NDArray[np.bool_]) -> FloatArray:
    """Mean of each column over the rows that count there; 0 where none does."""
    return (values * counted).sum(axis=0) / np.maximum(1, counted.sum(axis=0))


def path_rows(tree: HostTree, nodes: Sequence[int] | None = None) -> int:
    """Rows of root-to-leaf paths, as recurrent modules run them; the root left out.

    Args:
        tree: Whose paths.
        nodes: Of it those that count beside the root, none without its parent; None: all.
    """
    nodes = range(1, len(tree.tokens)) if nodes is None else nodes
    return tree.leaves(nodes) * max((tree.depths[node] for node in nodes), default=0)
