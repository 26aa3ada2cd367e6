"""What experiments share: prompts, contestants in turn, and how a script ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
from mlx_lm.generate import stream_generate as mlx_lm_stream
from mlx_lm.sample_utils import make_sampler
from rich.progress import track

from mlx_redrafter import AcceptanceStats, RedrafterError, stream_generate
from mlx_redrafter.benchmark.prompts import read_conversations

ROOT = Path(__file__).resolve().parent.parent
MLX_LM = "mlx-lm"


@dataclass
class Run:
    """One contestant over all prompts of one repeat.

    Attributes:
        seconds: Of whole answers, prompts included.
        prompt_seconds: Of these, until the first token of each.
        tokens: Of all answers.
        stats: Of those that were decoded here.
        texts: Tokens of each answer.
    """

    seconds: float = 0.0
    prompt_seconds: float = 0.0
    tokens: int = 0
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    texts: list[list[int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second of whole answers."""
        return self.tokens / self.seconds

    @property
    def generation_rate(self) -> float:
        """Tokens a second after the first one of each answer, which is the prompt's."""
        return (self.tokens - len(self.texts)) / max(1e-9, self.seconds - self.prompt_seconds)

    def take(self, responses: Iterator[Any]) -> None:
        """Consume one answer and count it."""
        tokens: list[int] = []
        response = None
        start = time.perf_counter()
        for response in responses:
            if not tokens:
                self.prompt_seconds += time.perf_counter() - start
            tokens.append(response.token)
        self.seconds += time.perf_counter() - start
        self.tokens += len(tokens)
        self.texts.append(tokens)
        if isinstance(getattr(response, "stats", None), AcceptanceStats):
            self.stats.merge(response.stats)  # type: ignore[union-attr]


def read_prompts(path: Path, count: int) -> list[Any]:
    """First prompts of a file that the benchmark reads, evenly spread over it: chat messages, or
    text to continue.
    """
    openings = [one.opening for one in read_conversations(path, count)]
    return [one if isinstance(one, str) else list(one) for one in openings]


def mlx_lm_answer(
    model: Any, tokenizer: Any, ids: list[int], max_tokens: int, temperature: float, seed: int
) -> Iterator[Any]:
    """mlx-lm's own responses to one prompt, with the cores that plain decoding here has."""
    mx.random.seed(seed)
    model.target.take_cores(len(ids))
    for response in mlx_lm_stream(
        model.target.model,
        tokenizer,
        ids,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
    ):
        model.target.take_cores(1)
        yield response


def answer(
    name: str,
    model: Any,
    tokenizer: Any,
    ids: list[int],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    **drafting: Any,
) -> Iterator[Any]:
    """Responses to one prompt: mlx-lm's own, or what is decoded here with options of drafting.

    What is asked again is not copied from its earlier answer, unless the options say so.
    """
    if name == MLX_LM:
        return mlx_lm_answer(model, tokenizer, ids, max_tokens, temperature, seed)
    return stream_generate(
        model,
        tokenizer,
        ids,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        **{"remember": False, **drafting},
    )


def ratios(
    repeats: Sequence[dict[str, Run]], name: str, over: str, rate: str = "rate"
) -> list[float]:
    """A contestant's rate over another's in the same repeat, for each repeat.

    Args:
        repeats: From :func:`measure`.
        name: The contestant.
        over: The other one.
        rate: Which of :class:`Run`'s rates.
    """
    return [getattr(runs[name], rate) / getattr(runs[over], rate) for runs in repeats]


def same_texts(one: Run, other: Run) -> int:
    """How many answers of two contestants are equal."""
    return sum(a == b for a, b in zip(one.texts, other.texts, strict=True))


def measure(
    names: Sequence[str],
    prompts: Sequence[list[int]],
    answer: Callable[[str, list[int]], Iterator[Any]],
    repeats: int,
    label: str,
    begin: Callable[[], None] = lambda: None,
) -> list[dict[str, Run]]:
    """Runs of every contestant, one dictionary a repeat; the first, a warm-up, is left out.

    Each prompt goes through all contestants before the next, in rotating order. ``begin`` is called
    before each repeat.
    """
    names, done = list(names), [{name: Run() for name in names} for _ in range(repeats + 1)]
    turns = [
        (repeat, index, ids)
        for repeat in range(repeats + 1)
        for index, ids in enumerate(prompts[:2] if repeat == 0 else prompts)
    ]
    for repeat, index, ids in track(turns, description=label, transient=True):
        if index == 0:
            begin()
        turn = (index + repeat) % len(names)
        for name in names[turn:] + names[:turn]:
            done[repeat][name].take(answer(name, ids))
    return done[1:]


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function; what a user did wrong is one sentence and exit code 2."""
    try:
        main()
    except RedrafterError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
