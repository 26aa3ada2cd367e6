"""Timing calls that are to be compared with each other, on a machine that does other things too.

All take turns, round by round, with a rest in between, so that what another program adds for a
while is in one round of each and not in all rounds of one. Rounds come in blocks, and a result is
believed when two blocks after each other agree, in their times and in what costs less than what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..system.last_threads import computing

Timer = Callable[[Callable[[], object]], float]

# Two blocks agree where no time differs by more than this factor.
AGREEMENT = 1.15
MOST_BLOCKS = 4
MOST_SLOW_BLOCKS = 3
# Rounds of a block, and the seconds that the first two blocks may take together: slow machines are
# measured more coarsely, not for minutes.
MOST_ROUNDS = 4
BUDGET = 4.0
# Nobody waits longer than this for a block more, or for calls after the first few.
LONGEST = 20.0
FEWEST_CALLS = 3
# A call that takes longer is not repeated before the first block, unless it is so much longer than
# the one before it that it may have waited for a compiler.
LONG_CALL, JUMP = 0.1, 5.0
# A rest is so large a share of a round, and no longer than that.
REST_SHARE, LONGEST_REST = 0.1, 0.05


@dataclass(frozen=True)
class Timings:
    """How long calls took.

    Attributes:
        seconds: Of each call, as far as there was hope.
        doubtful: Whether no two blocks agreed.
    """

    seconds: tuple[float, ...]
    doubtful: bool


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    hopeless: float = float("inf"),
    note: Callable[[int], None] = lambda _done: None,
    agreed: Callable[[float], float] = lambda seconds: seconds,
) -> Timings:
    """Time calls that block until they are done, the cheapest first.

    Args:
        calls: What to time.
        hopeless: Calls after one that takes this many times as long as the first are left out.
        note: Told of timings done; ``timings_of`` says how many there are at least.
        agreed: What all processes take for a time, see :meth:`SpeculativeModel.agreed`: how often
            calls are made depends on it.
    """

    def timer(call: Callable[[], object]) -> float:
        return agreed(seconds_of(call))

    def too_long() -> bool:
        return agreed(time.perf_counter() - started) > LONGEST

    started = time.perf_counter()
    first = _first_round(calls, hopeless, note, timer, too_long)
    left_out = len(calls) - len(first)
    calls = calls[: len(first)]
    rounds = max(1, min(MOST_ROUNDS, int(BUDGET / 2 / max(sum(first), 1e-9))))
    blocks = [_block(calls, rounds, note, timer)]
    if too_long():
        note(len(calls) + 3 * left_out)
        return Timings(tuple(map(min, zip(first, blocks[0], strict=True))), doubtful=True)
    blocks.append(_block(calls, rounds, note, timer))
    note(3 * left_out)
    most = MOST_BLOCKS if rounds > 1 else MOST_SLOW_BLOCKS
    while not agree(blocks[-2], blocks[-1]) and len(blocks) < most and not too_long():
        blocks.append(_block(calls, rounds, note, timer))
    if agree(blocks[-2], blocks[-1]):
        return Timings(tuple(map(fmean, zip(*blocks[-2:], strict=True))), doubtful=False)
    return Timings(tuple(map(min, zip(*blocks, strict=True))), doubtful=True)


def timings_of(calls: int) -> int:
    """How many timings ``time_in_turns`` notes of so many calls, where two blocks agree."""
    return 3 * calls


def agree(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether two blocks tell the same: no time far from the other, and falls in both or none.

    A larger forward may cost less than a smaller one, where kernels work in tiles; but then it does
    so whenever it is timed.
    """
    near = all(1 / AGREEMENT <= b / a <= AGREEMENT for a, b in zip(before, after, strict=True))
    return near and _falls(before, after) and _falls(after, before)


def _falls(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether what falls clearly in one block falls in the other too."""
    for place in range(1, len(before)):
        highest = max(range(place), key=lambda index: before[index])
        clear = before[place] * AGREEMENT < before[highest]
        if clear and after[place] >= after[highest]:
            return False
    return True


def _first_round(
    calls: Sequence[Callable[[], object]],
    hopeless: float,
    note: Callable[[int], None],
    timer: Timer,
    too_long: Callable[[], bool],
) -> list[float]:
    """Seconds of each call, as far as there are hope and time."""
    taken: list[float] = []
    for call in calls:
        # Two in a row: a machine that is busy for a moment is no reason.
        few = len(taken) < FEWEST_CALLS
        if not few and (min(taken[-2:]) >= hopeless * min(taken) or too_long()):
            break
        # The shorter of two: neither a first call's work nor another program's is a reason.
        seconds = timer(call)
        again = seconds < LONG_CALL or (taken and seconds > JUMP * taken[-1])
        taken.append(min(seconds, timer(call)) if again else seconds)
        note(1)
    return taken


def _block(
    calls: Sequence[Callable[[], object]], rounds: int, note: Callable[[int], None], timer: Timer
) -> list[float]:
    """Seconds of each call: the mean of the faster half of the rounds."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        started = time.perf_counter()
        # To and fro, so that a machine that grows hot does so for large and small calls alike.
        order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
        for place in order:
            taken[place].append(timer(calls[place]))
            if number == 0:
                note(1)
        time.sleep(min(LONGEST_REST, REST_SHARE * (time.perf_counter() - started)))
    return [fmean(sorted(seconds)[: (len(seconds) + 1) // 2]) for seconds in taken]


def seconds_of(call: Callable[[], object]) -> float:
    """What a call takes that blocks until it is done."""
    with computing():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
