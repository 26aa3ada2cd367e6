"""The target's own answers as training data (ReDrafter, section 3.3: knowledge distillation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from .data import Record, conversation


def _sampler(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Draw from log-probabilities (rows, vocabulary) with keys of its own."""
    if temperature == 0:
        return lambda log_probs: mx.argmax(log_probs, axis=-1)
    key = mx.random.key(seed)

    def sample(log_probs: mx.array) -> mx.array:
        nonlocal key
        key, draw = mx.random.split(key)
        return mx.random.categorical(log_probs / temperature, key=draw)

    return sample


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
) -> list[tuple[str, bool]]:
    """(text, whether it was cut off) for each prompt of token ids."""
    generator = BatchGenerator(
        model,
        stop_tokens=[[t] for t in sorted(tokenizer.eos_token_ids)],
        sampler=sampler,
        completion_batch_size=len(prompts),
    )
    ids = generator.insert([list(p) for p in prompts], [max_tokens] * len(prompts))
    tokens: dict[Any, list[int]] = {i: [] for i in ids}
    cut: dict[Any, bool] = dict.fromkeys(ids, False)
    while responses := generator.next_generated():
        for response in responses:
            if response.finish_reason != "stop":
                tokens[response.uid].append(response.token)
            cut[response.uid] = response.finish_reason == "length"
    generator.close()
    return [(tokenizer.decode(tokens[i]), cut[i]) for i in ids]


def _regenerate_chunk(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
) -> list[Record]:
    """Answer each user turn of the records in order, each after the target's earlier answers."""
    sources = [[m for m in conversation(r) if m["role"] != "assistant"] for r in records]
    chats: list[list[dict[str, str]]] = [[] for _ in records]
    cut = [False] * len(records)
    while any(sources):
        asked = []
        for i, source in enumerate(sources):
            while source and not cut[i]:
                chats[i].append(source.pop(0))
                if chats[i][-1]["role"] == "user":
                    asked.append(i)
                    break
            if cut[i]:
                source.clear()
        prompts = [
            tokenizer.apply_chat_template(chats[i], add_generation_prompt=True, return_dict=False)
            for i in asked
        ]
        answers = _answers(model, tokenizer, prompts, max_tokens, sampler) if prompts else []
        for i, (text, was_cut) in zip(asked, answers, strict=True):
            chats[i].append({"role": "assistant", "content": text})
            cut[i] = was_cut
    return [
        {"messages": chat, **({"truncated": True} if was_cut else {})}
        for chat, was_cut in zip(chats, cut, strict=True)
    ]


def regenerate(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    chunk_size: int = 64,
    start: int = 0,
) -> Iterator[Record]:
    """Replace the assistant's turns by what the target itself answers, one record at a time.

    Args:
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        records: Conversations or prompts, see ``data.conversation``.
        max_tokens: Longest answer; a conversation that reaches it ends there and is marked
            ``"truncated": true``.
        temperature: 0 takes the likeliest token each time.
        seed: With the chunk's number it gives the draws, so a run continued at ``start`` draws the
            same answers.
        chunk_size: Conversations answered side by side.
        start: Records already answered; a multiple of ``chunk_size``.

    Yields:
        {"messages": [...]} for ``records[start:]``, in their order.
    """
    for first in range(start, len(records), chunk_size):
        sampler = _sampler(temperature, seed * 1_000_003 + first // chunk_size)
        chunk = records[first : first + chunk_size]
        yield from _regenerate_chunk(model, tokenizer, chunk, max_tokens, sampler)
        mx.clear_cache()
