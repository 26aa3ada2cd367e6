"""Numbers of many digits in few."""

from __future__ import annotations


def count_words(count: int) -> str:
    """A count in thousands, millions or billions: 7.2K, 134.5M, 1.1B.

    Args:
        count: Of whatever there is much of, such as parameters.
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
