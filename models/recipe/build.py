"""The stages of the recipe, from installed docstrings to finished bundles."""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .corpus import build_items, load_items, save_items
from .files import read_jsonl, write_jsonl
from .prose_corpus import build_prose, prompt_of, texts_to_ask
from .questions import Asker, held_out_questions, training_conversations

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
MODELS = HERE.parent
SEED = 7
PROMPTS = 64  # fixed beginnings for the prose target
VOCABULARY = 3072
# Few wide layers: on a CPU a token costs little more than reading the weights once.
POCKET = {"width": 448, "layers": 4, "heads": 7, "feed_forward": 1024}
# A second model to draft with, of the drafter's size: what benchmarks compare the drafter with.
DRAFT_MODEL = {"width": 160, "layers": 4, "heads": 5, "feed_forward": 384}
CHAT_EPOCHS = 5  # times every item comes up in pocket/train.jsonl
OWN_ANSWERS = 3200  # conversations of the corpus that the target answers itself
# Of the drafters' training: the step size, and decoding of a chain as the planner prefers it here.
EVALUATED = {
    "positions_per_step": 256,
    "held_out": 400,
    "eval_every": 1000,
    "eval_prompts": 64,
    "beam_width": 1,
    "beam_length": 7,
}


def corpus_stage(_: argparse.Namespace) -> None:
    """Read the docstrings; write every training and held-out text, and the fixed questions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn when they are looked at
        items = build_items()
        train, valid = build_prose()
    write_jsonl(BUILD / "prose" / "train.jsonl", ({"text": text} for text in train))
    asked = texts_to_ask(valid, PROMPTS, SEED)
    write_jsonl(MODELS / "prose" / "prompts.jsonl", map(prompt_of, asked))
    # What benchmarks ask has no part in choosing a drafter.
    write_jsonl(
        BUILD / "prose" / "valid.jsonl", ({"text": text} for text in valid if text not in asked)
    )
    save_items(items, BUILD / "items.jsonl")
    chats = training_conversations(items, CHAT_EPOCHS, SEED)
    write_jsonl(BUILD / "pocket" / "train.jsonl", ({"messages": chat} for chat in chats))
    rows = held_out_questions(items, SEED)
    write_jsonl(BUILD / "held-out.jsonl", rows)
    keep = {"template": 130, "phrasing": 40, "unknown": 40}
    fixed = [row for kind, n in keep.items() for row in [r for r in rows if r["set"] == kind][:n]]
    write_jsonl(MODELS / "pocket" / "questions.jsonl", fixed)
    write_jsonl(
        BUILD / "pocket" / "valid.jsonl",
        (
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
            for row in rows
            if row not in fixed
        ),
    )
    print(f"{len(items)} items, {len(chats)} training chats, {len(rows)} held-out questions")


def tokenizer_stage(_: argparse.Namespace) -> None:
    """Train the tokenizer on one epoch of questions and answers."""
    from .tokenizer import train_tokenizer

    items = load_items(BUILD / "items.jsonl")
    turns = Asker(items).epoch(random.Random(f"{SEED}:tokenizer"), small_talk=0.035)
    texts = [text for turn in turns for text in (turn.question, turn.answer)]
    train_tokenizer(texts, VOCABULARY, BUILD / "tokenizer")


def target_stage(arguments: argparse.Namespace) -> None:
    """Train the pocket target, or go on with an interrupted run."""
    train_chat_model(arguments, POCKET, BUILD, BUILD / "pocket-hf")


def draft_model_stage(arguments: argparse.Namespace) -> None:
    """Train a second, small model in the same way, for benchmarks of two models."""
    from mlx_redrafter.conversion import convert

    work = BUILD / "draft-model"
    train_chat_model(arguments, DRAFT_MODEL, work / "run", work / "hf")
    convert(hf_path=work / "hf", mlx_path=work / "mlx", dtype="bfloat16", overwrite=True)


def train_chat_model(
    arguments: argparse.Namespace, sizes: dict[str, int], work: Path, output: Path
) -> None:
    """Train a model of those sizes on the pocket's corpus into ``output``, Hugging Face's layout.

    ``work`` keeps what an interrupted run goes on from.
    """
    import torch

    from .target import Shape, save_huggingface
    from .tokenizer import END, copy_tokenizer, load_tokenizer
    from .train_target import Schedule, train

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # tiny values of late training are slow on CPUs
    schedule = replace(Schedule(), compile=not arguments.no_compile, bfloat16=not arguments.float32)
    if arguments.epochs:
        schedule = replace(schedule, epochs=arguments.epochs)
    tokenizer = load_tokenizer(BUILD / "tokenizer")
    items = load_items(BUILD / "items.jsonl")
    work.mkdir(parents=True, exist_ok=True)
    model = train(
        items, tokenizer, Shape(vocabulary=VOCABULARY, **sizes), schedule, work, report=report
    )
    save_huggingface(model, tokenizer.token_to_id(END), output)
    copy_tokenizer(BUILD / "tokenizer", output)


def convert_stage(_: argparse.Namespace) -> None:
    """Convert the pocket target into models/pocket."""
    from .bundles import convert_bundle

    convert_bundle(BUILD / "pocket-hf", MODELS / "pocket", BUILD / "pocket-mlx")


def drafter_stage(_: argparse.Namespace) -> None:
    """Distil the pocket's drafter from the corpus."""
    from .bundles import train_bundle_drafter

    train_bundle_drafter(
        MODELS / "pocket",
        BUILD / "pocket",
        BUILD / "pocket-drafter",
        exit_dim=320,
        num_draft_layers=2,
        draft_vocab_size=2560,  # 99.9 % of the tokens that answers use
        steps=12000,
        learning_rate=5e-3,
        **EVALUATED,
    )


def own_questions(corpus: list[Any]) -> range:
    """Which conversations the stage of own answers has the target answer, evenly spread."""
    return range(0, len(corpus), len(corpus) // OWN_ANSWERS)[:OWN_ANSWERS]


def add_own_answers(known: list[Any], asked: list[Any], data: Path) -> None:
    """Write training data: what is known, and what the target draws at temperature 1 when asked."""
    from .bundles import own_answers

    answers = data / "answers.jsonl"
    own = own_answers(MODELS / "pocket", asked, answers, temperature=1.0, max_tokens=160)
    write_jsonl(data / "train.jsonl", [*known, *own])
    write_jsonl(data / "valid.jsonl", read_jsonl(BUILD / "pocket" / "valid.jsonl"))


def own_stage(_: argparse.Namespace) -> None:
    """Go on with the pocket's drafter on the target's own answers, beside the corpus."""
    from .bundles import relative, train_bundle_drafter

    corpus = read_jsonl(BUILD / "pocket" / "train.jsonl")
    asked = [corpus[index] for index in own_questions(corpus)]
    add_own_answers(corpus, asked, BUILD / "pocket-own")
    train_bundle_drafter(
        MODELS / "pocket",
        BUILD / "pocket-own",
        BUILD / "pocket-drafter-own",
        start_from=relative(BUILD / "pocket-drafter"),
        unroll=6,
        depth_decay=0.95,
        steps=9000,
        learning_rate=2.5e-3,
        **EVALUATED,
    )


def lookback_stage(_: argparse.Namespace) -> None:
    """Go on once more, for longer chains, with a state that reads the tokens before the root."""
    from .bundles import relative, train_bundle_drafter

    train_bundle_drafter(
        MODELS / "pocket",
        BUILD / "pocket-own",
        BUILD / "pocket-drafter-lookback",
        start_from=relative(BUILD / "pocket-drafter-own"),
        lookback=4,
        unroll=12,
        depth_decay=0.97,
        steps=5000,
        learning_rate=2.5e-3,
        **EVALUATED | {"beam_length": 12},
    )


def long_chains_stage(_: argparse.Namespace) -> None:
    """Go on a last time, for chains of fifteen, with all conversations answered by the target."""
    from .bundles import relative, train_bundle_drafter

    corpus = read_jsonl(BUILD / "pocket" / "train.jsonl")
    asked = own_questions(corpus)
    others = [chat for index, chat in enumerate(corpus) if index not in asked]
    known = read_jsonl(BUILD / "pocket-own" / "train.jsonl")
    add_own_answers(known, others, BUILD / "pocket-more")
    train_bundle_drafter(
        MODELS / "pocket",
        BUILD / "pocket-more",
        BUILD / "pocket-drafter-long",
        start_from=relative(BUILD / "pocket-drafter-lookback"),
        lookback=4,
        unroll=15,
        depth_decay=0.98,
        steps=5000,
        learning_rate=2.5e-3,
        **EVALUATED | {"beam_length": 15},
    )


def evaluate_stage(_: argparse.Namespace) -> None:
    """Measure the pocket target on held-out questions."""
    from .evaluate import evaluate

    evaluate(MODELS / "pocket", BUILD / "held-out.jsonl", BUILD / "evaluation.json")


def prose_stage(arguments: argparse.Namespace) -> None:
    """Fit the prose target."""
    import torch

    from .prose import ProseSchedule, train_prose
    from .target import save_huggingface
    from .tokenizer import END, copy_tokenizer, load_tokenizer

    torch.set_num_threads(arguments.threads)
    train, valid = (
        [row["text"] for row in read_jsonl(BUILD / "prose" / f"{part}.jsonl")]
        for part in ("train", "valid")
    )
    tokenizer = load_tokenizer(BUILD / "tokenizer")
    model = train_prose(train, valid, tokenizer, ProseSchedule(), BUILD, report=report)
    save_huggingface(model, tokenizer.token_to_id(END), BUILD / "prose-hf")
    copy_tokenizer(BUILD / "tokenizer", BUILD / "prose-hf")


def prose_convert_stage(_: argparse.Namespace) -> None:
    """Convert the prose target into models/prose."""
    from .bundles import convert_bundle

    convert_bundle(BUILD / "prose-hf", MODELS / "prose", BUILD / "prose-mlx")


def prose_drafter_stage(_: argparse.Namespace) -> None:
    """Distil the prose drafter from the target's own texts, likeliest and drawn ones."""
    from .bundles import own_answers, train_bundle_drafter

    for part in ("train", "valid"):
        texts = read_jsonl(BUILD / "prose" / f"{part}.jsonl")
        own = []
        for temperature in (0.0, 1.0):
            answers = BUILD / "prose-own" / f"{part}-answers-{temperature:g}.jsonl"
            own += own_answers(
                MODELS / "prose", texts, answers, temperature=temperature, max_tokens=96
            )
        write_jsonl(BUILD / "prose-own" / f"{part}.jsonl", own)
    train_bundle_drafter(
        MODELS / "prose",
        BUILD / "prose-own",
        BUILD / "prose-drafter",
        exit_dim=192,
        num_draft_layers=1,
        draft_vocab_size=2560,
        steps=4000,
        learning_rate=5e-3,
        **EVALUATED,
    )


def report(line: str) -> None:
    """Print at once, also into a file."""
    print(line, flush=True)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "corpus": corpus_stage,
    "tokenizer": tokenizer_stage,
    "target": target_stage,
    "convert": convert_stage,
    "drafter": drafter_stage,
    "own-answers": own_stage,
    "lookback": lookback_stage,
    "long-chains": long_chains_stage,
    "evaluate": evaluate_stage,
    "draft-model": draft_model_stage,
    "prose": prose_stage,
    "prose-convert": prose_convert_stage,
    "prose-drafter": prose_drafter_stage,
}


def main(argv: list[str] | None = None) -> None:
    """Run all stages, or the given ones, in order."""
    parser = argparse.ArgumentParser(
        prog="python -m models.recipe",
        description="Make the embedded models from docstrings.",
        epilog="\n".join(f"  {name:14} {stage.__doc__}" for name, stage in STAGES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this (repeatable)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--epochs", type=int, help="epochs of the target (another schedule)")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    parser.add_argument(
        "--float32", action="store_true", help="for processors without bfloat16 of their own"
    )
    arguments = parser.parse_args(argv)
    for name, stage in STAGES.items():
        if not arguments.stage or name in arguments.stage:
            stage(arguments)
