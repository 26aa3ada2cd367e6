"""Prompt files: conversations of one or more turns, and their token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError
from ..system.files import local_path
from ..system.own_models import own_models
from ..text.places import KNOWN, may_be_repo
from ..text.prompts import encode_prompt, plain_messages

OWN_FILES = ("questions.jsonl", "prompts.jsonl")
KEYS = '"turns", "messages", "question", "prompt" or "text"'
BETWEEN_TURNS = "\n\n"

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What one person asks, in order.

    Attributes:
        name: What to call it in reports.
        category: The file's own, "" where it has none.
        opening: Chat messages, or text to continue from as it stands.
        follow_ups: What is asked after each answer.
    """

    name: str
    category: str
    opening: tuple[Message, ...] | str
    follow_ups: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conversation:
        """From its fields, as JSON has them."""
        opening = values["opening"]
        return cls(
            name=values["name"],
            category=values["category"],
            opening=opening if isinstance(opening, str) else tuple(opening),
            follow_ups=tuple(values["follow_ups"]),
        )


@dataclass(frozen=True)
class Prompt:
    """One turn, ready to be answered.

    Attributes:
        name: The conversation's.
        category: The conversation's.
        turn: Counted from 1.
        tokens: Token ids: everything said before, and this question.
    """

    name: str
    category: str
    turn: int
    tokens: tuple[int, ...]


def read_conversations(path: Path, limit: int | None = None) -> list[Conversation]:
    """Read a prompts file.

    JSON Lines with "turns" (Spec-Bench, MT-bench), "question" or "messages" are chats; "prompt" and
    "text" are text to continue. Any other file is plain text, a question a paragraph where empty
    lines part them, else a question a line.

    Args:
        path: The file.
        limit: Take so many, evenly spread over the file, since files are often sorted by category.

    Raises:
        RedrafterError: If there is no such file, nothing in it, or a line that is not understood.
    """
    try:
        text = local_path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RedrafterError(f"{path} cannot be read ({reason}): check --prompts.") from error
    if path.suffix != ".jsonl" and _is_json_array(text):
        raise RedrafterError(f"{path} is a JSON array: write one object a line (JSON Lines).")
    lines = path.suffix == ".jsonl" or text.lstrip().startswith("{")
    found = list(_json_lines(path, text) if lines else _paragraphs(text))
    if not found:
        raise RedrafterError(f"{path} holds no prompts: put one on each line.")
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def find_own_prompts(model: Path) -> Path | None:
    """The prompts file that a bundle brings along, if it brings one."""
    found = (_directory(model) / name for name in OWN_FILES)
    return next((path for path in found if path.is_file()), None)


def _directory(model: Path) -> Path:
    """Where a model is, or would be."""
    return own_models() / model if str(model) in KNOWN else local_path(model)


def own_prompts(model: Path) -> Path:
    """The prompts file that a bundle brings along.

    Raises:
        RedrafterError: If it brings none, or a path leads nowhere.
    """
    found = find_own_prompts(model)
    if found is not None:
        return found
    if not _directory(model).exists() and not may_be_repo(str(model)):
        raise RedrafterError(f"There is no model directory {model}: check --model.")
    raise RedrafterError(f"{model} brings no {OWN_FILES[0]} along: pass --prompts FILE.")


def _paragraphs(text: str) -> Iterator[Conversation]:
    blocks = [block.strip() for block in "\n".join(map(str.rstrip, text.split("\n"))).split("\n\n")]
    unit = "paragraph"
    if sum(map(bool, blocks)) <= 1:
        blocks, unit = [line.strip() for line in text.splitlines()], "line"
    for number, block in enumerate(filter(None, blocks), start=1):
        yield Conversation(f"{unit} {number}", "", (_said("user", block),))


def _json_lines(path: Path, text: str) -> Iterator[Conversation]:
    # Other line ends may stand inside of JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RedrafterError(f"{path}, line {number} is not JSON: {error}.") from error
        conversation = _conversation(row, number) if isinstance(row, dict) else None
        if conversation is None:
            raise RedrafterError(f"{path}, line {number} has no {KEYS} that could be asked.")
        yield conversation


def _conversation(row: dict[str, Any], number: int) -> Conversation | None:
    """A row's conversation, None where it holds nothing to ask."""
    asked = row.get("question_id")
    name = f"line {number}" if asked is None else f"question {asked}"
    category = next((str(row[key]) for key in ("category", "set") if row.get(key) is not None), "")
    turns = row.get("turns", [row["question"]] if "question" in row else None)
    if turns is not None:
        if not isinstance(turns, list) or not turns or not all(_is_text(turn) for turn in turns):
            return None
        return Conversation(name, category, (_said("user", turns[0]),), tuple(turns[1:]))
    messages = row.get("messages")
    if messages is not None:
        good = isinstance(messages, list) and messages and all(map(_is_message, messages))
        return Conversation(name, category, tuple(_asked(messages))) if good else None
    text = row.get("prompt", row.get("text"))
    return Conversation(name, category, text) if isinstance(text, str) and text.strip() else None


def _asked(messages: list[Message]) -> list[Message]:
    """Messages without the answers at their end, which are the model's to give."""
    last = max((i for i, m in enumerate(messages) if m["role"] != "assistant"), default=-1)
    return messages[: last + 1] or messages


def _is_json_array(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def prepare(
    conversations: list[Conversation],
    tokenizer: TokenizerWrapper,
    answer: Callable[[list[int]], str],
    *,
    chat: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prompt]:
    """The prompts of all turns.

    Later turns stand after answers that are made here, once, so that whatever is measured answers
    the very same prompts.

    Args:
        conversations: What is asked.
        tokenizer: The model's.
        answer: Answers token ids with text; called for every turn but the last ones.
        chat: False asks everything as bare text, without the chat template, as it is for a
            tokenizer that has none.
        progress: Called with (conversations done, conversations to do).

    Raises:
        RedrafterError: If a prompt is empty, or the chat template refuses one.
    """
    prompts: list[Prompt] = []
    chat = chat and tokenizer.has_chat_template
    for done, conversation in enumerate(conversations):
        if progress is not None:
            progress(done, len(conversations))
        said = _opening(conversation, chat)
        for turn, following in enumerate([*conversation.follow_ups, None], start=1):
            ids = encode_prompt(tokenizer, said)
            prompts.append(Prompt(conversation.name, conversation.category, turn, tuple(ids)))
            if following is None:
                break
            reply = answer(ids)
            if isinstance(said, str):
                said = BETWEEN_TURNS.join([said + reply, following])
            else:
                said = [*said, _said("assistant", reply), _said("user", following)]
    return prompts


def _opening(conversation: Conversation, chat: bool) -> str | list[Message]:
    if isinstance(conversation.opening, str):
        return conversation.opening
    if chat:
        return list(conversation.opening)
    return BETWEEN_TURNS.join(m["content"] for m in plain_messages(conversation.opening))
