"""How well a bundle answers held-out questions.

    python -m models.recipe.evaluate models/pocket --count 300

Greedy answers in float32; an answer is right when its first line is exactly the signature, a
refusal when it begins with "I don't know".
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx_redrafter  # noqa: F401  (loads a fast BLAS, so it comes before mlx)

import mlx.core as mx  # isort: skip
from mlx import nn
from mlx_lm import load
from mlx_lm.generate import batch_generate
from rich.console import Console
from rich.table import Table

from .files import read_jsonl, write_json
from .questions import MESSAGE

HERE = Path(__file__).resolve().parent
REFUSAL = "I don't know"
BATCH = 32  # conversations decoded together
MAX_TOKENS = 200


@dataclass
class Score:
    """Counts of one set of questions."""

    asked: int = 0
    signatures: int = 0  # right first lines
    answers: int = 0  # right to the last character
    refused: int = 0
    nats: float = 0.0
    tokens: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Shares of the questions asked; loss in nats per answer token."""
        asked = max(1, self.asked)
        return {
            "asked": self.asked,
            "signature_right": self.signatures / asked,
            "answer_right": self.answers / asked,
            "refused": self.refused / asked,
            "nats_per_token": self.nats / max(1, self.tokens),
            "wrong": self.wrong,
        }


def load_float32(path: Path) -> tuple[nn.Module, Any]:
    """The model in float32, the precision that CPUs are fast in; quantised weights stay packed."""
    model, tokenizer = load(str(path))
    model.set_dtype(mx.float32)
    return model, tokenizer


def answer_all(model: nn.Module, tokenizer: Any, chats: list[list[MESSAGE]]) -> list[str]:
    """Greedy answers to the last message of each chat."""
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in chats
    ]
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        texts += batch_generate(model, tokenizer, part, max_tokens=MAX_TOKENS).texts
    return texts


def answer_loss(
    model: nn.Module, tokenizer: Any, chat: list[MESSAGE], answer: str
) -> tuple[float, int]:
    """Summed nats and count of the expected answer's tokens, the end token included."""
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    wanted = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    tokens = mx.array([prompt + wanted])
    logits = model(tokens[:, :-1])[:, len(prompt) - 1 :]
    losses = nn.losses.cross_entropy(logits, tokens[:, len(prompt) :])
    return losses.sum().item(), len(wanted)


def first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def score_rows(
    model: nn.Module, tokenizer: Any, rows: list[dict[str, Any]], before: list[list[MESSAGE]]
) -> Score:
    """Score rows of ``held-out.jsonl``, each asked after the messages of ``before``."""
    chats = [
        [*earlier, {"role": "user", "content": row["question"]}]
        for row, earlier in zip(rows, before, strict=True)
    ]
    score = Score()
    answers = answer_all(model, tokenizer, chats)
    for row, chat, answer in zip(rows, chats, answers, strict=True):
        nats, tokens = answer_loss(model, tokenizer, chat, row["answer"])
        right = first_line(answer) == first_line(row["answer"])
        refused = answer.startswith(REFUSAL)
        score.asked += 1
        score.signatures += right
        score.answers += answer.strip() == row["answer"]
        score.refused += refused
        score.nats += nats
        score.tokens += tokens
        if not (refused if row["set"] == "unknown" else right):
            score.wrong.append({"question": row["question"], "answer": answer})
    return score


def sets_of(
    rows: list[dict[str, Any]], count: int, seed: int
) -> dict[str, tuple[list[dict[str, Any]], list[list[MESSAGE]]]]:
    """Named sets of at most ``count`` rows, with what was said before each."""
    rng = random.Random(seed)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["set"], []).append(row)
    chosen = {kind: rng.sample(found, min(count, len(found))) for kind, found in kinds.items()}
    full = [r for r in kinds["template"] if "." in r["item"] and r["item"] in r["question"]]
    aliased = [r for r in full if not r["signature"].startswith(r["item"])]
    chosen["full name"] = rng.sample(aliased, min(count, len(aliased)))
    plain = {kind: (part, [[] for _ in part]) for kind, part in chosen.items()}
    later = rng.sample(kinds["template"], min(count, len(kinds["template"])))
    earlier = [
        [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        for row in rng.choices(kinds["phrasing"] + kinds["unknown"], k=len(later))
    ]
    return plain | {"second turn": (later, earlier)}


def show(results: dict[str, dict[str, Any]], title: str) -> None:
    """Print a table of the figures."""
    table = Table(title=title)
    for heading in ("held-out set", "asked", "signature", "whole answer", "refused", "loss (nats)"):
        table.add_column(heading, justify="left" if heading == "held-out set" else "right")
    for name, result in results.items():
        table.add_row(
            name,
            str(result["asked"]),
            f"{result['signature_right']:.1%}",
            f"{result['answer_right']:.1%}",
            f"{result['refused']:.1%}",
            f"{result['nats_per_token']:.4f}",
        )
    Console().print(table)


def evaluate(
    bundle: Path, rows_path: Path, output: Path, count: int = 300, seed: int = 1
) -> dict[str, dict[str, Any]]:
    """Ask, score, print and save."""
    model, tokenizer = load_float32(bundle)
    began = time.monotonic()
    results = {
        name: score_rows(model, tokenizer, rows, before).summary()
        for name, (rows, before) in sets_of(read_jsonl(rows_path), count, seed).items()
    }
    seconds = time.monotonic() - began
    show(results, f"{bundle.name}: greedy answers, {seconds:.0f} s")
    write_json(output, {"bundle": bundle.name, "count": count, "seed": seed, "sets": results})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.recipe.evaluate", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=Path, default=HERE / "build" / "held-out.jsonl")
    parser.add_argument("--count", type=int, default=300, help="questions of each set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "build" / "evaluation.json")
    arguments = parser.parse_args()
    if not arguments.rows.is_file():
        parser.error(
            f"{arguments.rows} is not there: run python -m models.recipe --stage corpus, which "
            "writes it"
        )
    evaluate(arguments.bundle, arguments.rows, arguments.output, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()
