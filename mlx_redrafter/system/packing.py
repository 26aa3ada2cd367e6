"""What is written in several files of a bounded size: which of it goes into which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def packed(items: Iterable[T], size: Callable[[T], int], limit: int) -> list[list[T]]:
    """Items in their order, in blocks that are filled one after the other.

    Args:
        items: What to pack.
        size: Of an item.
        limit: Of a block's sizes together; a larger item has a block of its own.
    """
    blocks: list[list[T]] = []
    filled = 0
    for item in items:
        own = size(item)
        if not blocks or filled + own > limit:
            blocks.append([])
            filled = 0
        blocks[-1].append(item)
        filled += own
    return blocks
