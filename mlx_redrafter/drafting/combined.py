"""Proposals of several sources as one tree, equal prefixes merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..tree import DraftTree
from .grafting import graft, merge
from .source import DraftInput, DraftSource


class Combined(NamedTuple):
    """Two trees of one root as one.

    Attributes:
        tree: It.
        alone: For each node of the first but its root, the place in ``tree``; None where the host
            knows that the second has it, too.
    """

    tree: DraftTree
    alone: tuple[int | None, ...]

    def places(self, nodes: Iterable[int]) -> frozenset[int]:
        """Where some nodes of the first tree are that the second has not."""
        found = (self.alone[node - 1] for node in nodes)
        return frozenset(place for place in found if place is not None)


def combine(first: DraftTree, second: DraftTree) -> Combined:
    """Two trees of one root as one; nothing is evaluated here.

    Where both are known to the host, nodes with the same tokens on the way from the root become
    one. Where one of them is known on the device only, a node of the other whose path is in it
    already keeps a row of its own, which nothing follows.

    Args:
        first: Preferred: its nodes stand first.
        second: A tree of the same root.

    Raises:
        ValueError: If neither is known to the host: its structure has to be known to one.
    """
    if first.known is not None and second.known is not None:
        merged = merge(first.known, second.known)
        scores = merged.scores(first.known, second.known)
        return Combined(
            DraftTree.from_parents(merged.tokens, merged.parents, scores),
            tuple(place if merged.copies[place] < 0 else None for place in merged.guessed_at[1:]),
        )
    if second.known is not None:
        return Combined(graft(first, second.known), tuple(range(1, len(first))))
    if first.known is not None:
        tree = graft(second, first.known)
        return Combined(tree, tuple(range(len(second), len(tree))))
    raise ValueError("of two combined sources at least one has to know its tree on the host")


def draft_together(
    sources: Sequence[Sequence[DraftSource]], states: Sequence[DraftInput]
) -> list[DraftTree]:
    """A tree for each of several texts; a source that texts share drafts for them at once.

    Args:
        sources: For each text what proposes, at least one source, the preferred one first.
        states: What each text's sources are told.
    """
    shared: dict[int, tuple[DraftSource, list[tuple[int, int]]]] = {}
    for text, own in enumerate(sources):
        for rank, source in enumerate(own):
            shared.setdefault(id(source), (source, []))[1].append((text, rank))
    proposed: dict[tuple[int, int], DraftTree] = {}
    for source, places in shared.values():
        trees = source.together([states[text] for text, _ in places])
        proposed.update(zip(places, trees, strict=True))
    result = []
    for text, own in enumerate(sources):
        tree = proposed[text, 0]
        for rank in range(1, len(own)):
            tree = combine(tree, proposed[text, rank]).tree
        result.append(tree)
    return result
