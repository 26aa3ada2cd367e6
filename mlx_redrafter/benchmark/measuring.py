"""Contestants take turns, prompt by prompt; and what their times come to."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..engine.statistics import AcceptanceStats
from .contestants import Answer, Contestant, Task, time_answer
from .prompts import Prompt

WARM_UP_PROMPTS = 2


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        median: The middle one.
        low, high: The quartiles, inclusive method; half of the measurements lie between them.
        minimum, maximum: The extremes.
        count: How many.
    """

    median: float
    low: float
    high: float
    minimum: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low = middle = high = values[0]
        if len(values) > 1:
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, min(values), max(values), len(values))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


# One repeat: every contestant's answers, in the order of the prompts.
Round = Mapping[str, Sequence[Answer]]


@dataclass(frozen=True)
class Result:
    """What one contestant's answers come to.

    Attributes:
        name: The contestant's.
        description: The contestant's.
        tokens: In the answers of one repeat.
        tokens_per_second: Tokens over whole seconds of a repeat, prefill included.
        decode_tokens_per_second: Likewise, after the forward of each answer's first token, which
            may have made several.
        first_token_seconds: Over all answers.
        ratios: Tokens per second over another contestant's in the same repeat, by its name.
        memory_bytes: Its weights, and the most that any of its answers held beside them.
        stats: Steps and acceptance over all repeats; None where there are none.
    """

    name: str
    description: str
    tokens: int
    tokens_per_second: Spread
    decode_tokens_per_second: Spread
    first_token_seconds: Spread
    ratios: Mapping[str, Spread]
    memory_bytes: int
    stats: AcceptanceStats | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "description": self.description,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second.to_dict(),
            "decode_tokens_per_second": self.decode_tokens_per_second.to_dict(),
            "first_token_seconds": self.first_token_seconds.to_dict(),
            "ratios": {name: ratio.to_dict() for name, ratio in self.ratios.items()},
            "peak_memory_bytes": self.memory_bytes,
            "stats": self.stats.to_dict() if self.stats else None,
        }


def turn_order(names: Sequence[str], repeat: int, prompt: int) -> list[str]:
    """The order in which contestants answer a prompt: each is first equally often."""
    first = (repeat + prompt) % len(names)
    return [*names[first:], *names[:first]]


def measure(
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    task: Task,
    repeats: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Round]:
    """Have all contestants answer all prompts, several times.

    Each prompt goes through all contestants before the next one, in rotating order. Before the
    first repeat every contestant answers the first prompts once without being timed.

    Args:
        contestants: At least one, with names of their own.
        prompts: At least one.
        task: What they do.
        repeats: How many times.
        progress: Called with (answers done, answers to do), warm-up included.

    Yields:
        Each repeat when it is complete.
    """
    by_name = {contestant.name: contestant for contestant in contestants}
    report = progress or (lambda _done, _total: None)
    warm = min(WARM_UP_PROMPTS, len(prompts))
    total, done = len(by_name) * (warm + repeats * len(prompts)), 0
    with _little_garbage():
        for repeat in range(-1, repeats):
            answers: dict[str, list[Answer]] = {name: [] for name in by_name}
            for index, prompt in enumerate(prompts[:warm] if repeat < 0 else prompts):
                for name in turn_order(list(by_name), max(repeat, 0), index):
                    report(done, total)
                    answers[name].append(time_answer(by_name[name], prompt.tokens, task))
                    done += 1
            report(done, total)
            if repeat >= 0:
                yield answers


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Have Python's collector look at new objects only, while the block runs.

    Libraries leave hundreds of thousands of objects. Going through them takes as long as an answer
    of a small model, and it would happen within one answer or another.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def summarise(contestants: Sequence[Contestant], rounds: Sequence[Round]) -> list[Result]:
    """What each contestant's answers come to, over at least one repeat."""
    return [_summarise(contestant, rounds) for contestant in contestants]


def _summarise(contestant: Contestant, rounds: Sequence[Round]) -> Result:
    name = contestant.name
    own = [answer for round_ in rounds for answer in round_[name]]
    stats = [answer.stats for answer in own if answer.stats is not None]
    total = AcceptanceStats() if stats else None
    for part in stats:
        assert total is not None
        total.merge(part)
    ratios = {
        other: Spread.of([speed(round_[name]) / speed(round_[other]) for round_ in rounds])
        for other in rounds[0]
        if other != name
    }
    return Result(
        name=name,
        description=contestant.description,
        tokens=sum(len(answer.tokens) for answer in rounds[-1][name]),
        tokens_per_second=Spread.of([speed(round_[name]) for round_ in rounds]),
        decode_tokens_per_second=Spread.of([decode_speed(round_[name]) for round_ in rounds]),
        first_token_seconds=Spread.of([answer.first_token_seconds for answer in own]),
        ratios=ratios,
        memory_bytes=contestant.weight_bytes + max(answer.memory_bytes for answer in own),
        stats=total,
    )


def speed(answers: Sequence[Answer]) -> float:
    """Tokens per second over whole answers, prefill included."""
    seconds = sum(answer.seconds for answer in answers)
    return sum(len(answer.tokens) for answer in answers) / max(seconds, 1e-9)


def decode_speed(answers: Sequence[Answer]) -> float:
    """Tokens per second after each answer's first forward; 0 where there are no others."""
    seconds = sum(answer.seconds - answer.first_token_seconds for answer in answers)
    return sum(len(answer.tokens) - answer.at_once for answer in answers) / max(seconds, 1e-9)
