"""Training of the pocket target: answers only, rows packed with whole turns, resumable."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import Item
from .files import replace_file, write_json
from .phrases import SYSTEM as SYSTEM_TEXTS
from .questions import Asker, Turn
from .target import Shape, Target
from .tokenizer import ASSISTANT, END, USER
from .tokenizer import SYSTEM as SYSTEM_TOKEN

LOOKAHEAD = 64  # turns among which the packer looks for one that still fits


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn. Steps are counted in optimiser updates."""

    epochs: int = 26
    late_epochs: int = 8  # after those: more unknown names and small talk, at a lower rate
    late_rate: float = 4e-4  # at their start, falling linearly to zero
    late_unknown: float = 0.25  # see questions.UNKNOWN_SHARE
    late_small_talk: float = 0.12
    row: int = 256  # tokens
    rows: int = 12  # in a batch
    long_every: int = 5  # one batch in so many has a quarter of the rows, four times as long
    learning_rate: float = 1.2e-3
    last_rate: float = 0.02  # of learning_rate, at the end of the cosine
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 7
    save_every: float = 180.0  # seconds
    compile: bool = True  # needs a C++ compiler; about a tenth faster
    bfloat16: bool = True  # autocast; many times slower on processors that cannot do it themselves


Encoded = tuple[list[int], list[bool]]


def encode_turns(tokenizer: Tokenizer, turns: list[Turn]) -> list[Encoded]:
    """Tokens of each turn, and which of them the loss counts (answer and end)."""
    questions = tokenizer.encode_batch([f"{USER}{t.question}{END}{ASSISTANT}" for t in turns])
    answers = tokenizer.encode_batch([f"{t.answer}{END}" for t in turns])
    return [
        (q.ids + a.ids, [False] * len(q.ids) + [True] * len(a.ids))
        for q, a in zip(questions, answers, strict=True)
    ]


def pack(
    turns: list[Encoded], systems: list[list[int]], row: int, rng: random.Random
) -> list[Encoded]:
    """Rows of at most ``row`` tokens made of whole turns; one in ten opens with a system text."""
    waiting = list(reversed(turns))
    rows = []
    while waiting:
        head = rng.choice(systems) if rng.random() < 0.1 else []
        tokens, counted = list(head), [False] * len(head)
        while True:
            window = range(len(waiting) - 1, max(-1, len(waiting) - 1 - LOOKAHEAD), -1)
            fit = next((i for i in window if len(tokens) + len(waiting[i][0]) <= row), None)
            if fit is None:
                break
            more, marks = waiting.pop(fit)
            tokens += more
            counted += marks
        if len(tokens) == len(head):
            waiting.pop()  # a turn longer than a whole row
            continue
        rows.append((tokens, counted))
    return rows


def epoch_batches(
    asker: Asker, tokenizer: Tokenizer, schedule: Schedule, epoch: int
) -> list[tuple[Tensor, Tensor]]:
    """The batches of one epoch, (tokens, counted) each (rows, row); the same whenever asked."""
    rng = random.Random(f"{schedule.seed}:epoch:{epoch}")
    late = epoch >= schedule.epochs
    shares = (schedule.late_unknown, schedule.late_small_talk) if late else ()
    turns = encode_turns(tokenizer, asker.epoch(rng, *shares))
    systems = [tokenizer.encode(f"{SYSTEM_TOKEN}{text}{END}").ids for text in SYSTEM_TEXTS]
    cut = len(turns) // schedule.long_every
    short = pack(turns[cut:], systems, schedule.row, rng)
    long = pack(turns[:cut], systems, 4 * schedule.row, rng)
    batches = []
    for rows, count in ((short, schedule.rows), (long, schedule.rows // 4)):
        for start in range(0, len(rows), count):
            group = rows[start : start + count]
            length = max(len(tokens) for tokens, _ in group)
            batch = torch.zeros((len(group), length), dtype=torch.long)
            marks = torch.zeros((len(group), length), dtype=torch.bool)
            for i, (tokens, counted) in enumerate(group):
                batch[i, : len(tokens)] = torch.tensor(tokens)
                marks[i, : len(tokens)] = torch.tensor(counted)
            batches.append((batch, marks))
    rng.shuffle(batches)
    return batches


def rate(schedule: Schedule, progress: float, step: int) -> float:
    """Learning rate at ``progress``, 1 being the end of the main epochs, where the late ones begin.

    A linear warm-up, a cosine, then a line from ``late_rate`` to zero.
    """
    if progress >= 1:
        left = 1 - (progress - 1) * schedule.epochs / schedule.late_epochs
        return schedule.late_rate * left
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    floor = schedule.last_rate
    return (
        schedule.learning_rate
        * min(1.0, (step + 1) / schedule.warmup)
        * (floor + (1 - floor) * cosine)
    )


def save_checkpoint(path: Path, model: Target, optimiser: torch.optim.Optimizer, at: dict) -> None:
    """Everything that a rerun needs to go on, in one file."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "at": at}
    with replace_file(path) as temporary:
        torch.save(state, temporary)


def make_optimiser(model: Target, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW without weight decay: the text is to be learnt by heart."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=schedule.betas,
        weight_decay=0.0,
        fused=True,
    )


def steps_from(
    asker: Asker, tokenizer: Tokenizer, schedule: Schedule, at: dict
) -> Iterator[tuple[int, int, float, Tensor, Tensor]]:
    """(epoch, next index, progress, tokens, counted) from the position ``at`` to the end."""
    first = at["index"]
    for epoch in range(at["epoch"], schedule.epochs + schedule.late_epochs):
        batches = epoch_batches(asker, tokenizer, schedule, epoch)
        for index in range(first, len(batches)):
            progress = (epoch + index / len(batches)) / schedule.epochs
            yield epoch, index + 1, progress, *batches[index]
        first = 0


def train(
    items: list[Item],
    tokenizer: Tokenizer,
    shape: Shape,
    schedule: Schedule,
    build: Path,
    report: Callable[[str], None] = print,
) -> Target:
    """Train, or go on where ``build/pocket.pt`` stopped; writes the checkpoint and a log."""
    model = Target(shape, torch.Generator().manual_seed(schedule.seed))
    optimiser = make_optimiser(model, schedule)
    at = {"epoch": 0, "index": 0, "step": 0, "seconds": 0.0, "tokens": 0, "log": []}
    checkpoint = build / "pocket.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        at = state["at"]
        report(f"going on at epoch {at['epoch']}, step {at['step']}")
    began, saved = time.monotonic() - at["seconds"], time.monotonic()
    window: list[float] = []
    if schedule.compile:
        model.hidden = torch.compile(model.hidden, dynamic=True)
    for epoch, index, progress, tokens, counted in steps_from(
        Asker(items), tokenizer, schedule, dict(at)
    ):
        for group in optimiser.param_groups:
            group["lr"] = rate(schedule, progress, at["step"])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=schedule.bfloat16):
            loss = model.loss(tokens, counted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimiser.step()
        window.append(loss.item())
        at |= {"epoch": epoch, "index": index, "step": at["step"] + 1}
        at |= {"tokens": at["tokens"] + tokens.numel(), "seconds": time.monotonic() - began}
        if at["step"] % 50 == 0:
            mean = sum(window) / len(window)
            window.clear()
            at["log"].append([at["step"], round(progress, 4), round(mean, 4)])
            report(
                f"step {at['step']} epoch {epoch} progress {progress:.3f} loss {mean:.4f} "
                f"{at['tokens'] / at['seconds']:.0f} tokens/s {at['seconds']:.0f} s"
            )
        if time.monotonic() - saved > schedule.save_every:
            save_checkpoint(checkpoint, model, optimiser, at)
            saved = time.monotonic()
    save_checkpoint(checkpoint, model, optimiser, at)
    write_json(build / "pocket-training.json", {"schedule": asdict(schedule), **at})
    return model
