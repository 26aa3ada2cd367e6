"""Conversations and texts to rows of token ids in which the target's own words are marked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tuner.datasets import TextDataset

from ..errors import RedrafterError
from ..system.files import atomic_path, local_path
from ..text.chat_template import apply_template, bounded
from ..text.drafter_files import tokenizer_hash
from ..text.prompts import check_characters, plain_messages

Record = dict[str, Any]
# A file's own text has none, so JSON's escapes are all that can bring halves of characters in.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


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


def read_jsonl(path: str | Path) -> list[Record]:
    """Records of a JSON Lines file.

    Raises:
        RedrafterError: If the file is missing or unreadable, or a line is not a JSON object or
            holds half a character.
    """
    path = local_path(path)
    if not path.is_file():
        raise RedrafterError(f"There is no file {path}: pass a JSON Lines file.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RedrafterError(f"{path} cannot be read ({reason}): pass JSON Lines.") from error
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # also integers of thousands of digits
            record = None
        if not isinstance(record, dict):
            raise RedrafterError(
                f"{path}, line {number} is not a JSON object: write one object a line."
            )
        if _HALF.search(line):
            _check_characters(record, f"{path}, line {number}")
        records.append(record)
    return records


def _check_characters(record: Record, where: str) -> None:
    """Refuse halves of characters wherever in a record, since it may be written again as it is."""
    for key, value in record.items():
        waiting: list[Any] = [value, key]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                check_characters(one, f"{where}: {key!a}")
            elif isinstance(one, dict):
                waiting += [*reversed(one.values()), *one]
            elif isinstance(one, list):
                waiting += reversed(one)


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def is_text(record: Record) -> bool:
    """Whether a record is a plain text, not a conversation; told apart as mlx_lm.lora does."""
    return "text" in record and "messages" not in record and not _is_completion(record)


def is_message(message: Any) -> bool:
    """Whether something is a message of a conversation; a tool's call may come without content."""
    return (
        isinstance(message, dict)
        and "role" in message
        and bool({"content", "tool_calls"} & set(message))
    )


def _is_completion(record: Record) -> bool:
    return "prompt" in record and "completion" in record


def conversation(record: Record) -> list[dict[str, Any]]:
    """The messages of a record of chat messages, of a prompt, or of a prompt and its completion.

    Raises:
        RedrafterError: If it is none of these, or a message has content other than text.
    """
    if "messages" in record and not _is_completion(record):
        return plain_messages(record["messages"])
    if "prompt" in record:
        messages = [{"role": "user", "content": record["prompt"]}]
        if "completion" in record:
            messages.append({"role": "assistant", "content": record["completion"]})
        return plain_messages(messages)
    raise RedrafterError(
        f"A record has the keys {sorted(record)}: 'messages', 'prompt' or 'text' is needed."
    )


@contextmanager
def templating(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Turn what a chat template raises over ``messages`` into one sentence.

    Raises:
        RedrafterError: If there is no template, or it refuses them.
    """
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "The data are chats or prompts, but this model's tokenizer has no chat template: "
            "pass texts, or the chat version of the model."
        )
    try:
        with bounded(tokenizer, len(str(messages)), times=2 * len(messages) + 1):
            yield
    except Exception as error:  # templates raise errors of their own kinds
        begins = str(messages[0].get("content"))[:40] if messages else ""
        roles = ", ".join(str(message.get("role")) for message in messages[:6])
        raise RedrafterError(
            f"The model's chat template refuses a conversation of the data ({error}), the one of "
            f"{roles} that begins {begins!r}: change or remove conversations like it."
        ) from error


def _chat_row(record: Record, tokenizer: Any) -> TokenRow:
    """Tokens of a conversation with every assistant turn marked, its end-of-turn token included."""
    messages = conversation(record)
    with templating(tokenizer, messages):
        return _templated(record, messages, tokenizer)


def _templated(record: Record, messages: list[dict[str, Any]], tokenizer: Any) -> TokenRow:
    # A conversation that opens with an answer has no prompt to give it after.
    turns = [i for i, m in enumerate(messages) if i > 0 and m.get("role") == "assistant"]
    if not turns:
        return TokenRow(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool))
    tools = record.get("tools")
    whole = _chat_tokens(tokenizer, messages, tools)
    tokens = np.array(whole, dtype=np.int32)
    answer = np.zeros(len(tokens), dtype=bool)
    ends = np.isin(tokens, sorted(tokenizer.eos_token_ids))
    for i in turns:
        part = whole
        if i + 1 < len(messages):
            part = _chat_tokens(tokenizer, messages[: i + 1], tools)
        prompt = chat_prompt(tokenizer, messages[:i], tools)
        # Some templates rewrite earlier turns; what the target wrote then is not in this text.
        if not np.array_equal(tokens[: len(part)], part):
            continue
        start = _common(part, prompt)  # others leave out again what they open an answer with
        stops = np.flatnonzero(ends[start : len(part)])
        stop = start + int(stops[0]) + 1 if len(stops) else len(part)
        if record.get("truncated") and i == turns[-1] and len(stops):
            stop -= 1  # the target had more to say: its end here is not its own
        answer[start:stop] = True
    return TokenRow(tokens, answer)


def chat_prompt(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Any) -> list[int]:
    """Token ids after which the target answers ``messages``."""
    return _chat_tokens(tokenizer, messages, tools, add_generation_prompt=True)


def _chat_tokens(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Any, **arguments: Any
) -> list[int]:
    """Token ids of a conversation, as mlx_lm.lora's data sets have them."""
    return list(apply_template(tokenizer, messages, tools=tools, return_dict=False, **arguments))


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the beginning that both have."""
    length = min(len(one), len(two))
    same = np.equal(one[:length], two[:length])
    return length if same.all() else int(same.argmin())


def _text_row(record: Record, tokenizer: Any) -> TokenRow:
    """Tokens of a text; of one that the target continued only what it wrote itself counts."""
    if not record["text"]:
        return TokenRow(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool))
    has_end = tokenizer.eos_token_id is not None  # the data set's own code takes it for granted
    dataset = TextDataset([], tokenizer)
    try:
        ids = dataset.process(record)[0] if has_end else tokenizer.encode(record["text"])
    except IndexError:
        ids = []  # nothing but what the tokenizer leaves out
    tokens = np.array(ids, dtype=np.int32)
    answer = np.arange(len(tokens)) >= max(1, record.get("prompt_tokens") or 1)
    if record.get("truncated") and has_end:
        answer[-1:] = False  # the end that was put there, unless the text has no tokens at all
    return TokenRow(tokens, answer)


def row_of(record: Record, tokenizer: Any) -> TokenRow:
    """The row that a record's text gives, of any length, with what is to be learned marked.

    Raises:
        RedrafterError: If the record is of no known kind, or the chat template refuses it.
    """
    return _text_row(record, tokenizer) if is_text(record) else _chat_row(record, tokenizer)


@dataclass(frozen=True)
class Turn:
    """An answer token by token.

    Attributes:
        tokens: The prompt's and the answer's token ids.
        prompt_tokens: How many of them are the prompt's.
    """

    tokens: list[int]
    prompt_tokens: int

    def row(self) -> TokenRow:
        """Its row, all of the answer marked."""
        tokens = np.array(self.tokens, dtype=np.int32)
        return TokenRow(tokens, np.arange(len(tokens)) >= self.prompt_tokens)


def with_turns(record: Record, turns: Sequence[Turn], tokenizer: Any, sha256: str) -> Record:
    """A record that gives exactly these answers' tokens.

    Its text alone does, unless the chat template drops or rewrites parts of answers, such as the
    thoughts of a reasoning model, or the model wrote a word in other tokens than the tokenizer. The
    token ids are then kept beside it, for this tokenizer and this text only.

    Args:
        record: A conversation or text.
        turns: The answers in it, in order.
        tokenizer: mlx-lm's TokenizerWrapper.
        sha256: Its ``drafter_files.tokenizer_hash``, which takes a while.
    """
    if not turns:
        return record
    try:
        row = row_of(record, tokenizer)
        answered = sum(len(turn.tokens) - turn.prompt_tokens for turn in turns)
        if answered == row.answer.sum() and all(_gives(row, turn) for turn in turns):
            return record
    except RedrafterError:
        pass  # a template may refuse what the model wrote; the tokens serve without it
    kept = [asdict(turn) for turn in turns]
    ids = {"tokenizer": sha256, "text": _text_hash(record), "answers": kept}
    return {**record, "token_ids": ids}


def _text_hash(record: Record) -> str:
    """SHA-256 of all that a record says, by which token ids beside it are known to be of it."""
    said = record["text"] if is_text(record) else [conversation(record), record.get("tools")]
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _kept_turns(record: Record, tokenizer_sha256: str) -> list[Turn] | None:
    """The answers whose token ids stand beside a record's text.

    None if there are none, they are another tokenizer's, or the text was edited since. Records of
    earlier versions do not say which text theirs were of, and are believed.
    """
    kept = record.get("token_ids")
    if not isinstance(kept, dict) or kept.get("tokenizer") != tokenizer_sha256:
        return None
    if "text" in kept and kept["text"] != _text_hash(record):
        return None
    return [Turn(**turn) for turn in kept["answers"]]


def _gives(row: TokenRow, turn: Turn) -> bool:
    end = len(turn.tokens)
    return bool(
        np.array_equal(row.tokens[:end], turn.tokens) and row.answer[turn.prompt_tokens : end].all()
    )


def tokenize(
    records: Iterable[Record],
    tokenizer: Any,
    max_seq_length: int = 2048,
    *,
    name: str = "The data",
) -> list[TokenRow]:
    """Rows of at most ``max_seq_length`` tokens; those with nothing to learn are left out.

    Args:
        records: {"messages": [...]}, {"prompt", "completion"} or {"text"} objects, as
            ``mlx_lm.lora`` takes them. In conversations the assistant's turns count, in texts
            everything. The target's own answers may bring their tokens, see ``with_turns``.
        tokenizer: mlx-lm's TokenizerWrapper.
        max_seq_length: Longer rows are cut.
        name: What to call the records in an error.

    Raises:
        RedrafterError: If no row is left.
    """
    rows, cut = [], False
    sha256 = tokenizer_hash(tokenizer)
    for record in records:
        turns = _kept_turns(record, sha256)
        found = [row_of(record, tokenizer)] if turns is None else [turn.row() for turn in turns]
        for whole in found:
            row = TokenRow(whole.tokens[:max_seq_length], whole.answer[:max_seq_length])
            # The first draft needs a hidden state and a root before the token it guesses.
            if row.answer[2:].any():
                rows.append(row)
            cut = cut or bool(whole.answer[2:].any()) or record.get("truncated") is True
    if cut and not rows:
        raise RedrafterError(
            f"{name} has answers only behind the first {max_seq_length} tokens of its rows, at "
            "which max_seq_length cuts them: raise it."
        )
    if not rows:
        raise RedrafterError(
            f"{name} has no answers to learn from: pass conversations with assistant turns, "
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
    # Those without a name of their own, such as Llama 3's for tools, are only in this table.
    ids |= {
        i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
    }
    return sorted(int(i) for i in ids if i is not None)
