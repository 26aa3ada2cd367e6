"""Conversations and texts to rows of token ids in which the target's own words are marked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tuner.datasets import ChatDataset, TextDataset

from ..errors import RedrafterError
from ..files import atomic_path

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One conversation or text.

    Attributes:
        tokens: Token ids, int32, shape (n,).
        answer: Whether the target would have written the token itself, bool, shape (n,). Only
            these tokens are learned and counted.
    """

    tokens: np.ndarray
    answer: np.ndarray


def read_jsonl(path: Path) -> list[Record]:
    """Records of a JSON Lines file.

    Raises:
        RedrafterError: If the file is missing or a line is not a JSON object.
    """
    if not path.is_file():
        raise RedrafterError(f"There is no file {path}: pass a JSON Lines file.")
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict):
                raise RedrafterError(f"{path}, line {number} is not a JSON object.")
            records.append(record)
    return records


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def is_text(record: Record) -> bool:
    """Whether a record is a plain text, not a conversation."""
    return "text" in record and "messages" not in record


def conversation(record: Record) -> list[dict[str, str]]:
    """The messages of a record of chat messages, of a prompt, or of a prompt and its completion.

    Raises:
        RedrafterError: If it is none of these.
    """
    if "messages" in record:
        return list(record["messages"])
    if "prompt" in record:
        messages = [{"role": "user", "content": record["prompt"]}]
        if "completion" in record:
            messages.append({"role": "assistant", "content": record["completion"]})
        return messages
    raise RedrafterError(
        f"A record has the keys {sorted(record)}: 'messages', 'prompt' or 'text' is needed."
    )


def _chat_row(record: Record, tokenizer: Any) -> TokenRow:
    """Tokens of a conversation with every assistant turn marked, its end-of-turn token included."""
    messages = conversation(record)
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "The data are chats or prompts, but this model's tokenizer has no chat template: "
            "pass texts, or the chat version of the model."
        )
    # A conversation that opens with an answer has no prompt to give it after.
    turns = [i for i, m in enumerate(messages) if i > 0 and m.get("role") == "assistant"]
    if not turns:
        return TokenRow(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool))
    dataset = ChatDataset([], tokenizer, mask_prompt=True)
    tokens = np.array(dataset.process({"messages": messages})[0], dtype=np.int32)
    answer = np.zeros(len(tokens), dtype=bool)
    ends = np.isin(tokens, sorted(tokenizer.eos_token_ids))
    for i in turns:
        part, start = dataset.process({"messages": messages[: i + 1]})
        # Some templates rewrite earlier turns; what the target wrote then is not in this text.
        if not np.array_equal(tokens[: len(part)], part):
            continue
        stops = np.flatnonzero(ends[start : len(part)])
        stop = start + int(stops[0]) + 1 if len(stops) else len(part)
        if record.get("truncated") and i == turns[-1] and len(stops):
            stop -= 1  # the target had more to say: its end here is not its own
        answer[start:stop] = True
    return TokenRow(tokens, answer)


def _text_row(record: Record, tokenizer: Any) -> TokenRow:
    """Tokens of a text; of one that the target continued only what it wrote itself counts."""
    if not record["text"]:
        return TokenRow(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool))
    tokens = np.array(TextDataset([], tokenizer).process(record)[0], dtype=np.int32)
    answer = np.arange(len(tokens)) >= max(1, record.get("prompt_tokens", 1))
    if record.get("truncated"):
        answer[-1] = False  # the end that was put there
    return TokenRow(tokens, answer)


def tokenize(
    records: Iterable[Record], tokenizer: Any, max_seq_length: int = 2048
) -> list[TokenRow]:
    """Rows of at most ``max_seq_length`` tokens; those with nothing to learn are left out.

    Args:
        records: {"messages": [...]}, {"prompt", "completion"} or {"text"} objects, as
            ``mlx_lm.lora`` takes them. In conversations the assistant's turns count, in texts
            everything.
        tokenizer: mlx-lm's TokenizerWrapper.
        max_seq_length: Longer rows are cut.

    Raises:
        RedrafterError: If no row is left.
    """
    rows = []
    for record in records:
        row = _text_row(record, tokenizer) if is_text(record) else _chat_row(record, tokenizer)
        row = TokenRow(row.tokens[:max_seq_length], row.answer[:max_seq_length])
        # The first draft needs a hidden state and a root before the token it guesses.
        if row.answer[2:].any():
            rows.append(row)
    if not rows:
        raise RedrafterError(
            "The data has no answers to learn from: pass conversations with assistant turns, "
            "texts, or let the target answer the prompts first."
        )
    return rows


def split_rows(
    rows: Sequence[TokenRow], held_out: int, seed: int = 0
) -> tuple[list[TokenRow], list[TokenRow]]:
    """(training rows, ``held_out`` others), drawn from ``seed``; each keeps its order.

    Raises:
        RedrafterError: If no training row would be left.
    """
    if held_out >= len(rows):
        raise RedrafterError(
            f"{held_out} rows cannot be held out of {len(rows)}: pass more data or hold out fewer."
        )
    drawn = set(np.random.default_rng(seed).permutation(len(rows))[:held_out].tolist())
    kept = [row for i, row in enumerate(rows) if i not in drawn]
    return kept, [rows[i] for i in sorted(drawn)]


def token_counts(rows: Sequence[TokenRow], vocab_size: int) -> np.ndarray:
    """How often each token id is answered, int64, shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for row in rows:
        counts += np.bincount(row.tokens[row.answer], minlength=vocab_size)
    return counts


def special_tokens(tokenizer: Any) -> list[int]:
    """Sorted ids of the tokenizer's special tokens, those that end a turn included."""
    ids = set(tokenizer.all_special_ids) | set(tokenizer.eos_token_ids)
    return sorted(int(i) for i in ids if i is not None)
