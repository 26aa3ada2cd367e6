"""Ranks that decode the same text tell at once where they do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.lockstep import agreed_seconds, check_same_cache, check_same_text
from mlx_redrafter.errors import SharedError

Call = Callable[[Any], object]
PROMPT = [1, 2, 3]


class Exchange:
    """What three ranks say to each other, each in a thread of its own."""

    def __init__(self) -> None:
        self._said: dict[int, list[float]] = {}
        self._barrier = threading.Barrier(3)

    def gather(self, rank: int, values: list[float]) -> list[list[float]]:
        self._said[rank] = values
        self._barrier.wait(60)
        return [self._said[one] for one in range(3)]


class Rank:
    """One of them."""

    def __init__(self, exchange: Exchange, rank: int):
        self._exchange, self._rank = exchange, rank

    def gather(self, values: list[float]) -> list[list[float]]:
        return self._exchange.gather(self._rank, values)


def heard(*calls: Call) -> list[Any]:
    """What each rank has of its call, or is told."""
    exchange = Exchange()

    def make(rank: int) -> Any:
        try:
            return calls[rank](Rank(exchange, rank))
        except SharedError as error:
            return str(error)

    with ThreadPoolExecutor(3) as threads:
        return list(threads.map(make, range(3)))


def begins(ranks: Any, **more: Any) -> None:
    check_same_text(ranks, PROMPT, DecodingConfig(**more), plans=False)


def reads(ranks: Any, held: int = 2, prompt: list[int] = PROMPT) -> None:
    check_same_cache(ranks, prompt, held)


def steps(ranks: Any, token: int = 7) -> float:
    return agreed_seconds(ranks, 0.5, [token])


def test_ranks_that_do_the_same_are_let_go_on() -> None:
    assert heard(begins, begins, begins) == [None] * 3
    assert heard(reads, reads, reads) == [None] * 3
    assert heard(steps, steps, steps) == [0.5] * 3


CALL = "Rank 2 has made another call than rank 0, or has read further in a text or less far: make"


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (begins, steps, CALL),
        (steps, begins, CALL),
        (steps, reads, CALL),
        (begins, lambda ranks: begins(ranks, max_tokens=3), "Rank 2 was given other options than"),
        (begins, lambda ranks: begins(ranks, logits_processors=[min]), "Rank 2 was given other o"),
        (reads, lambda ranks: reads(ranks, 1), "Rank 2's cache holds another text than rank 0's: "),
        (reads, lambda ranks: reads(ranks, prompt=[1, 2, 4]), "Rank 2 reads another prompt than r"),
        (steps, lambda ranks: steps(ranks, 8), "Rank 2 chose other tokens than rank 0: make the "),
    ],
)  # fmt: skip
def test_the_rank_that_does_something_else_is_named(first: Call, last: Call, words: str) -> None:
    told = heard(first, first, last)
    assert [one[: len(words)] for one in told] == [words] * 3
