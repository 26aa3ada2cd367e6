"""A second, tiny target fitted to the running prose of the same documentation.

Text learnt by heart leaves almost nothing to chance. This model is stopped before it memorises, so
that its samples keep the entropy of real text; measurements of sampling need such a target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .files import write_json
from .target import Shape, Target
from .tokenizer import END

SHAPE = Shape(width=192, layers=4, heads=3, feed_forward=512)


@dataclass(frozen=True)
class ProseSchedule:
    """Training stops when the held-out loss has not fallen ``patience`` times."""

    row: int = 256  # tokens
    rows: int = 12
    learning_rate: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 0.1
    steps: int = 300
    check_every: int = 50
    patience: int = 3
    seed: int = 11


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts in one row of tokens, each closed by the end token."""
    encoded = tokenizer.encode_batch([f"{text}{END}" for text in texts])
    return torch.tensor([token for one in encoded for token in one.ids])


def rows_of(stream: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """The stream cut into (rows, row + 1) with one shared token, all of them counted."""
    starts = range(0, len(stream) - row - 1, row)
    tokens = torch.stack([stream[i : i + row + 1] for i in starts])
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


@torch.no_grad()
def held_out_loss(model: Target, stream: Tensor, row: int) -> float:
    """Mean nats per token."""
    tokens, counted = rows_of(stream, row)
    parts = zip(tokens.split(32), counted.split(32), strict=True)
    losses = [(model.loss(t, c).item(), len(t)) for t, c in parts]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


@torch.no_grad()
def own_entropy(model: Target, end: int, generator: torch.Generator, rows: int = 64) -> float:
    """Mean entropy in nats of the next token along the model's own samples at temperature 1."""
    tokens = torch.full((rows, 1), end)
    entropies = []
    for _ in range(128):
        states = model.hidden(tokens)[:, -1]
        logs = torch.log_softmax(states @ model.embedding.weight.T, dim=-1)
        entropies.append(-(logs.exp() * logs).sum(-1).mean().item())
        drawn = torch.multinomial(logs.exp(), 1, generator=generator)
        tokens = torch.cat((tokens, drawn), dim=1)
    return sum(entropies) / len(entropies)


def random_batch(stream: Tensor, schedule: ProseSchedule, generator: torch.Generator) -> Tensor:
    """Rows from random places of the stream, (rows, row + 1)."""
    high = len(stream) - schedule.row - 1
    starts = torch.randint(high, (schedule.rows,), generator=generator)
    return torch.stack([stream[i : i + schedule.row + 1] for i in starts.tolist()])


def train_prose(
    train: list[str],
    valid: list[str],
    tokenizer: Tokenizer,
    schedule: ProseSchedule,
    build: Path,
    report: Callable[[str], None] = print,
) -> Target:
    """Train until the held-out loss stops falling; the best weights are kept."""
    generator = torch.Generator().manual_seed(schedule.seed)
    model = Target(SHAPE, generator)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    stream, held_out = token_stream(tokenizer, train), token_stream(tokenizer, valid)
    best, best_step, kept, log = math.inf, 0, model.state_dict(), []
    began = time.monotonic()
    for step in range(1, schedule.steps + 1):
        tokens = random_batch(stream, schedule, generator)
        cosine = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * min(1.0, step / schedule.warmup) * cosine
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.loss(tokens, torch.ones_like(tokens, dtype=torch.bool))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % schedule.check_every:
            continue
        now = held_out_loss(model, held_out, schedule.row)
        log.append([step, round(loss.item(), 4), round(now, 4)])
        report(f"prose step {step} loss {loss.item():.3f} held out {now:.3f}")
        if now < best:
            best, best_step = now, step
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        elif step - best_step >= schedule.patience * schedule.check_every:
            break
    model.load_state_dict(kept)
    entropy = own_entropy(model, tokenizer.token_to_id(END), generator)
    figures = {
        "schedule": asdict(schedule),
        "train_tokens": len(stream),
        "held_out_tokens": len(held_out),
        "best_step": best_step,
        "seconds": time.monotonic() - began,
        "held_out_nats_per_token": best,
        "held_out_bits_per_token": best / math.log(2),
        "own_entropy_nats": entropy,
        "own_entropy_bits": entropy / math.log(2),
        "log": log,
    }
    write_json(build / "prose-training.json", figures)
    return model
