"""Points of a text that can be gone back to where a layer cannot go back to any.

An earlier turn of a conversation begins where a prompt ended, and another question about a long
document somewhere in its middle. So what a layer held at the ends of the last prompts is kept, and
at some of the places between the pieces in which a long prompt was run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

# The ends of so many prompts, and so many of the places between pieces. Each costs one more copy.
KEPT_PROMPTS = 6
KEPT_PIECES = 6

Content = TypeVar("Content")


class KeptPoints(Generic[Content]):
    """What was held after so many tokens, for a few points of one text."""

    def __init__(self) -> None:
        self._prompts: list[tuple[int, Content]] = []
        self._pieces: list[tuple[int, Content]] = []

    def __len__(self) -> int:
        return len(self._prompts) + len(self._pieces)

    @property
    def positions(self) -> list[int]:
        """Tokens before each point."""
        return [position for position, _ in (*self._prompts, *self._pieces)]

    @property
    def contents(self) -> list[Content]:
        """What was held at each."""
        return [content for _, content in (*self._prompts, *self._pieces)]

    def find(self, position: int) -> Content | None:
        """What was held after so many tokens; None where that was not kept."""
        points = (*self._prompts, *self._pieces)
        return next((content for at, content in points if at == position), None)

    def add(self, start: int, end: int, content: Content) -> None:
        """Keep what is held after a piece of a prompt from ``start`` to ``end``.

        The point at ``start``, if there is one, turns out to lie between two pieces.
        """
        pieces = [point for point in self._prompts if point[0] == start]
        prompts = [point for point in self._prompts if point[0] not in (start, end)]
        self._pieces = thinned([*self._pieces, *pieces], KEPT_PIECES)
        self._prompts = [*prompts, (end, content)][-KEPT_PROMPTS:]

    def copy(self) -> KeptPoints[Content]:
        """The same points, to add to and drop by themselves."""
        made: KeptPoints[Content] = KeptPoints()
        made._prompts, made._pieces = list(self._prompts), list(self._pieces)
        return made

    def to_data(self, write: Callable[[Content], Any]) -> list[list[list[Any]]]:
        """Each point as its position and what was held: the ends of prompts, then other places.

        Args:
            write: Makes plain data of what was held.
        """
        both = self._prompts, self._pieces
        return [[[position, write(held)] for position, held in points] for points in both]

    def take_over(self, data: list[list[list[Any]]], read: Callable[[Any], Content]) -> None:
        """Go on from the points of :meth:`to_data`.

        Args:
            data: As it was given there.
            read: The inverse of ``write``.
        """
        self._prompts, self._pieces = (
            [(position, read(content)) for position, content in points] for points in data
        )

    def forget_after(self, length: int) -> None:
        """Drop the points beyond ``length`` tokens."""
        self._prompts = [point for point in self._prompts if point[0] <= length]
        self._pieces = [point for point in self._pieces if point[0] <= length]


def thinned(points: Sequence[tuple[int, Content]], most: int) -> list[tuple[int, Content]]:
    """Points in ascending order, at most so many, spread over the text; the last one is kept.

    What is left out, time and again, is the point whose neighbours are nearest to each other.
    """
    contents = dict(points)
    kept = sorted(contents)
    while len(kept) > most:
        inner = zip([0, *kept], kept, kept[1:], strict=False)
        gaps = {point: after - before for before, point, after in inner}
        kept.remove(min(gaps, key=lambda point: gaps[point]))
    return [(point, contents[point]) for point in kept]
