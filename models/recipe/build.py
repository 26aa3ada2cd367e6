"""The stages of the recipe, from installed docstrings to finished bundles."""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .corpus import build_items, load_items, save_items
from .files import write_jsonl
from .questions import Asker, held_out_questions, training_conversations

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
MODELS = HERE.parent
SEED = 7
VOCABULARY = 3072
CHAT_EPOCHS = 3  # times every item comes up in train.jsonl


def corpus_stage(_: argparse.Namespace) -> None:
    """Read the docstrings; write items.jsonl, train.jsonl, valid.jsonl and the fixed questions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn when they are looked at
        items = build_items()
    save_items(items, BUILD / "items.jsonl")
    chats = training_conversations(items, CHAT_EPOCHS, SEED)
    write_jsonl(BUILD / "train.jsonl", ({"messages": chat} for chat in chats))
    rows = held_out_questions(items, SEED)
    write_jsonl(BUILD / "held-out.jsonl", rows)
    write_jsonl(
        BUILD / "valid.jsonl",
        (
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
            for row in rows
        ),
    )
    keep = {"template": 130, "phrasing": 40, "unknown": 40}
    fixed = [row for kind, n in keep.items() for row in [r for r in rows if r["set"] == kind][:n]]
    write_jsonl(MODELS / "pocket" / "questions.jsonl", fixed)
    print(f"{len(items)} items, {len(chats)} training chats, {len(rows)} held-out questions")


def tokenizer_stage(_: argparse.Namespace) -> None:
    """Train the tokenizer on one epoch of questions and answers."""
    from .tokenizer import train_tokenizer

    items = load_items(BUILD / "items.jsonl")
    turns = Asker(items).epoch(random.Random(f"{SEED}:tokenizer"))
    texts = [text for turn in turns for text in (turn.question, turn.answer)]
    train_tokenizer(texts, VOCABULARY, BUILD / "tokenizer")


def target_stage(arguments: argparse.Namespace) -> None:
    """Train the pocket target, or go on with an interrupted run."""
    import torch

    from .target import Shape
    from .tokenizer import load_tokenizer
    from .train_target import Schedule, finish, train

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # tiny values of late training are slow on CPUs
    schedule = replace(Schedule(), compile=not arguments.no_compile)
    if arguments.epochs:
        schedule = replace(schedule, epochs=arguments.epochs)
    tokenizer = load_tokenizer(BUILD / "tokenizer")
    items = load_items(BUILD / "items.jsonl")
    model = train(items, tokenizer, Shape(vocabulary=VOCABULARY), schedule, BUILD, report=report)
    finish(model, tokenizer, BUILD / "pocket-hf")


def report(line: str) -> None:
    """Print at once, also into a file."""
    print(line, flush=True)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "corpus": corpus_stage,
    "tokenizer": tokenizer_stage,
    "target": target_stage,
}


def main(argv: list[str] | None = None) -> None:
    """Run all stages, or the given ones, in order."""
    parser = argparse.ArgumentParser(
        prog="python -m models.recipe", description="Make the embedded models from docstrings."
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this (repeatable)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--epochs", type=int, help="epochs of the target (another schedule)")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    arguments = parser.parse_args(argv)
    for name, stage in STAGES.items():
        if not arguments.stage or name in arguments.stage:
            stage(arguments)
