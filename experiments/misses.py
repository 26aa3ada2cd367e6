"""Where drafts miss, and what that leaves to gain at a temperature: a draft from every place.

    python experiments/misses.py [--model models/pocket] [--prompts FILE] [--temp 0 1] [--limit N]

The model answers each prompt plainly. Then a single beam is drafted behind every token of the
answer, from the state that decoding would have there, and compared with what the answer goes on
with. Two tables come of that for each temperature: the first guesses, by how sure the target had
been of the token that they stand behind, and the tokens per step that chains make

- as decoding drafts, ignoring the noise, and following all of it;
- by a drafter that always knows the target's likeliest token, but not what noise makes of it.

No clock is read: speeds are what follows from --price, the time of a drafted step in plain steps
(python -m mlx_redrafter.plan says what it is on a machine).
"""

from __future__ import annotations

import argparse
import bisect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_redrafter import load
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.benchmark.prompts import own_prompts, prepare, read_conversations
from mlx_redrafter.drafting.noise_scale import NoiseScale
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.backoff import DraftBackoff
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampler import Sampler
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.ui.cli.benchmark_view import circumstances

ROOT = Path(__file__).resolve().parent.parent
TOGETHER = 32  # drafts at once
# How sure the target was of a token: its probability, from each edge up to the next.
SURE = (0.0, 0.1, 0.5, 0.9, 0.99)
AS_DECODED, IGNORING, FOLLOWING = "as decoded", "ignoring the noise", "following it"


@dataclass(frozen=True)
class Places:
    """An answer's tokens that have a successor, in order, and the drafts behind them.

    Attributes:
        sureness: The probability that the target gave each.
        flipped_by_noise: Whether noise decided the token behind each: it is not the likeliest one.
        accepted: For each way of drafting, how many of a chain's tokens would be accepted there.
    """

    sureness: list[float]
    flipped_by_noise: list[bool]
    accepted: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.flipped_by_noise)


def answer(
    model: SpeculativeModel,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    limit: int,
    eos: set[int],
) -> list[int]:
    """The target's own answer."""
    config = DecodingConfig(limit, sampling, draft=False, eos_token_ids=frozenset(eos))
    return [token.token for token in decode(model, prompt, config)]


def places(
    model: SpeculativeModel,
    prompt: Sequence[int],
    said: Sequence[int],
    sampling: SamplingConfig,
    length: int,
) -> Places:
    """Drafts behind every token of an answer but its last."""
    count, first = len(said) - 1, len(prompt) - 1
    logits, hidden = (rows[0, first:] for rows in model.target.teach(mx.array([[*prompt, *said]])))
    logits = logits.astype(mx.float32) / (sampling.temperature or 1.0)
    probabilities = mx.softmax(logits, axis=-1)
    said_next = mx.array(said)
    sureness = mx.take_along_axis(probabilities[:-1], said_next[:, None], axis=-1)[:, 0].tolist()
    flipped_by_noise = (mx.argmax(logits[:-1], axis=-1) != said_next).tolist()
    noise = Sampler(sampling, model.target.vocab_size).noise(len(prompt) + 1, count + length)
    noise_scale, trusted = NoiseScale(), []
    for one in flipped_by_noise[:-1]:
        noise_scale.observe([one])
        trusted.append(noise_scale.scale)
    scales = {AS_DECODED: trusted, IGNORING: [0.0] * count, FOLLOWING: [1.0] * count}
    if noise is None:
        scales = {AS_DECODED: trusted}
    search = model.source(BeamShape(1, length), sampling, timed=False)
    assert search is not None, "no drafter"

    def state(place: int, scale: float) -> DraftInput:
        level_noise = None if noise is None else noise[place : place + length] * scale
        text = [*prompt, *said[:place]]
        return DraftInput(
            said_next[place : place + 1].astype(mx.int32), hidden[place], level_noise, text
        )

    def accepted(scale: Sequence[float]) -> Iterator[int]:
        for begin in range(0, count, TOGETHER):
            block = range(begin, min(count, begin + TOGETHER))
            trees = search.together([state(place, scale[place]) for place in block])
            for place, tree in zip(block, trees, strict=True):
                yield common(tree.tokens.tolist()[1:], said[place + 1 :])

    return Places(
        sureness[:count],
        flipped_by_noise[1:],
        {way: list(accepted(scale)) for way, scale in scales.items()},
    )


def common(guessed: Sequence[int], said: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    pairs = zip(guessed, said, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(guessed), len(said)))


def unswayed(flipped_by_noise: Sequence[bool], length: int) -> list[int]:
    """What a drafter of the likeliest tokens gets accepted at each place: up to a swayed token."""
    return [
        common([False] * length, flipped_by_noise[place:]) for place in range(len(flipped_by_noise))
    ]


def steps(accepted: Sequence[int]) -> int:
    """Steps for an answer in which every step drafts."""
    place = count = 0
    while place < len(accepted):
        place += accepted[place] + 1
        count += 1
    return count


def paused_time(accepted: Sequence[int], price: float) -> float:
    """Time of an answer in plain steps, with the pauses that decoding makes."""
    pauses, place, time = DraftBackoff(), 0, 0.0
    while place < len(accepted):
        if pauses.pausing:
            pauses.paused()
            place, time = place + 1, time + 1.0
            continue
        made = accepted[place] + 1
        pauses.drafted(price, made)
        place, time = place + made, time + price
    return time


def least_time(accepted: Sequence[int], price: float) -> float:
    """The same, if it were known beforehand which drafts pay."""
    times = [0.0]
    for taken in reversed(accepted):
        times.append(min(1.0 + times[-1], price + times[-1 - min(taken, len(times) - 1)]))
    return times[-1]


def first_guesses(answers: Sequence[Places]) -> Table:
    """Shares of first guesses that are right."""
    ways = list(answers[0].accepted)
    rows: list[list[tuple[bool, list[bool]]]] = [[] for _ in SURE]
    for one in answers:
        hits = zip(*([n > 0 for n in one.accepted[way]] for way in ways), strict=True)
        for sure, flipped_by_noise, hit in zip(
            one.sureness, one.flipped_by_noise, hits, strict=True
        ):
            rows[bisect.bisect_right(SURE, sure) - 1].append((flipped_by_noise, list(hit)))
    headings = ("the target gave a token", "places", "next decided by noise", *ways)
    table = _table("First guesses behind it that are right", headings)
    for low, high, row in zip(SURE, [*SURE[1:], 1.0], rows, strict=True):
        if row:
            shares = [
                np.mean([flipped_by_noise for flipped_by_noise, _ in row]),
                *np.mean([hit for _, hit in row], 0),
            ]
            table.add_row(f"{low:g} to {high:g}", str(len(row)), *(f"{x:.1%}" for x in shares))
    return table


def chains(answers: Sequence[Places], length: int, price: float) -> Table:
    """Tokens per step of chains, and the speed that follows."""
    headings = ("drafts", "tokens per step", "speed", "with pauses", "with foresight")
    table = _table(
        f"Chains of {length}; speeds over plain, a drafted step taking {price:g} plain ones",
        headings,
    )
    ways = {way: [one.accepted[way] for one in answers] for way in answers[0].accepted}
    ways["of likeliest tokens"] = [unswayed(one.flipped_by_noise, length) for one in answers]
    tokens = sum(map(len, answers))
    for way, accepted in ways.items():
        drafted = sum(map(steps, accepted))
        paused = sum(paused_time(one, price) for one in accepted)
        least = sum(least_time(one, price) for one in accepted)
        speeds = (tokens / drafted, tokens / drafted / price, tokens / paused, tokens / least)
        table.add_row(way, *(f"{x:.2f}" for x in speeds))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def main() -> None:
    """Answer, draft and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pocket")
    parser.add_argument("--prompts", type=Path, help="default: those in the model's directory")
    parser.add_argument("--limit", type=int, help="conversations, evenly from the file")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temp", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=15, help="of the chains")
    parser.add_argument("--price", type=float, default=2.0, help="of a drafted step in plain ones")
    args = parser.parse_args()
    where = environment(sys.argv[1:], "python experiments/misses.py")
    model, tokenizer = load(str(args.model), plan=False)
    eos = set(tokenizer.eos_token_ids)
    asked = read_conversations(args.prompts or own_prompts(args.model), args.limit)
    prompts = [p.tokens for p in prepare(asked, tokenizer, lambda _ids: "")]
    console = Console()
    for temperature in args.temp:
        sampling = SamplingConfig(temperature=temperature, top_p=args.top_p, seed=args.seed)
        answers = []
        for prompt in track(prompts, f"temperature {temperature:g}", transient=True):
            said = answer(model, prompt, sampling, args.max_tokens, eos)
            if len(said) > 1:
                answers.append(places(model, prompt, said, sampling, args.length))
        console.rule(f"{args.model.name}, temperature {temperature:g}: {len(answers)} answers")
        console.print(first_guesses(answers), chains(answers, args.length, args.price))
    console.print(circumstances(where))


if __name__ == "__main__":
    main()
