"""A second, tiny target fitted to the running prose of the same documentation.

Text learnt by heart leaves almost nothing to chance. This model is stopped before it memorises, so
that its samples keep the entropy of real text; measurements of sampling need such a target.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import paragraphs, plain, strip_signature
from .files import write_json
from .sources import MODULES
from .target import Shape, Target
from .tokenizer import END

SHAPE = Shape(width=192, layers=4, heads=3, feed_forward=512)
HELD_OUT_SHARE = 8  # one document in so many is held out
MIN_WORDS = 8  # of a paragraph


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


def documents() -> Iterator[tuple[str, str]]:
    """(name, docstring) of every module, and of its public functions, classes and their methods."""
    seen: set[int] = set()

    def once(name: str, thing: Any) -> Iterator[tuple[str, str]]:
        doc = getattr(thing, "__doc__", None)
        if isinstance(doc, str) and zlib.crc32(doc.encode()) not in seen:
            seen.add(zlib.crc32(doc.encode()))
            yield name, doc

    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield from once(module_name, module)
        for name, thing in sorted(vars(module).items()):
            if name.startswith("_") or inspect.ismodule(thing):
                continue
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield from once(f"{module_name}.{name}", thing)
            if inspect.isclass(thing):
                for part, member in sorted(vars(thing).items()):
                    if not part.startswith("_"):
                        yield from once(f"{module_name}.{name}.{part}", member)


def prose_of(doc: str) -> list[str]:
    """Paragraphs of running text: whole sentences, no code, tables or lists."""
    found = []
    for block in paragraphs(strip_signature(doc)):
        text = plain(block)
        words = re.findall(r"[A-Za-z]{2,}", text)
        code = len(re.findall(r"[=<>{}\[\]_|\\*+/]", text))
        running = text.isascii() and text[-1] in ".!?" and "---" not in text
        if running and len(words) >= MIN_WORDS and code * 8 < len(words):
            found.append(text)
    return found


def build_prose() -> tuple[list[str], list[str]]:
    """(training, held-out) texts, one for each document; equal paragraphs are kept once."""
    seen: set[str] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for name, doc in documents():
        fresh = [text for text in prose_of(doc) if text not in seen]
        seen.update(fresh)
        if fresh:
            held_out = zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0
            parts[held_out].append("\n".join(fresh))
    return parts


def prompts_of(texts: list[str], count: int, seed: int) -> list[dict[str, str]]:
    """Beginnings of held-out texts: their first eight words."""
    long = [text for text in texts if len(text.split()) >= 30]
    chosen = random.Random(seed).sample(long, min(count, len(long)))
    return [{"prompt": " ".join(text.split()[:8])} for text in chosen]


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
