"""Prompts: text, token ids or chat messages, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import RedrafterError

Messages = Sequence[dict[str, Any]]


def encode_prompt(
    tokenizer: TokenizerWrapper, prompt: str | Sequence[int] | Messages | mx.array
) -> list[int]:
    """Token ids of a prompt: text, ids, or chat messages through the chat template.

    Raises:
        RedrafterError: If it is empty, or messages meet a tokenizer without a chat template.
    """
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        ids = list(tokenizer.encode(prompt, add_special_tokens=special))
        return _not_empty(ids)
    listed: Any = prompt.tolist() if isinstance(prompt, mx.array) else prompt
    items: list[Any] = list(listed) if isinstance(listed, Sequence) else [None]
    if items and all(isinstance(item, dict) for item in items):
        return _not_empty(_encode_messages(tokenizer, items))
    if not all(isinstance(item, int) for item in items):
        raise RedrafterError(
            "The prompt has to be text, a list of token ids, or a list of chat messages "
            '({"role": ..., "content": ...}).'
        )
    return _not_empty(items)


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise RedrafterError("The prompt is empty: give at least one token.")
    return ids


def _encode_messages(tokenizer: TokenizerWrapper, messages: Messages) -> list[int]:
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "This model's tokenizer has no chat template: pass the prompt as text instead."
        )
    try:
        ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    except Exception as error:  # templates raise errors of their own kinds
        raise RedrafterError(f"The chat template refused these messages: {error}") from error
    return list(ids)
